"""Faults on purpose: tiny pretrainings on the CPU, killed and hindered, whose end must be the same.

    python -m nnssl.bench.faults [--minutes 10] [--seed 0] [--only "killed" "full disk"]

After every fault the same command is typed again until it ends well. Weights, optimiser and losses
must then be bit for bit those of an undisturbed run, no process may be left, nothing may
have waited for ever, and what was printed may hold no traceback. The table says how many of each
were done and survived; the exit status is 1 where one was not. Without minutes each is done once.
Linux only; where the user is root, a small tmpfs is filled as well.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nnssl import phantoms, signals
from nnssl.bench import processes, trials
from nnssl.bench.tally import Tally
from nnssl.bench.trials import Lost, Trial
from nnssl.bench.undisturbed import Undisturbed, end_as, undisturbed

STOPPED, REFUSED = 75, 1  # exit statuses
KILLS = 3  # in a row
SAID = 20_000  # bytes, more than a run prints
SCANS = 3
YEARS = 10 * 365 * 86400.0


Fault = Callable[[Trial, random.Random, Undisturbed], int]  # how many were done to the run


def killed(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """SIGKILL at random moments, of the main process or of all; in the preparation or after it."""
    seconds, done = whole.lend(trial, chance), 0
    for _ in range(KILLS):
        run = trial.start()
        trial.sleep(run, chance, seconds)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if chance.random() < 0.3 else os.kill)(run, signal.SIGKILL)
        done += trial.wait(run) == -signal.SIGKILL
    return done


def kill(process: int, number: int = signal.SIGKILL) -> None:
    """Send a signal, unless the process has ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def stopped(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """A signal that asks to stop, at random moments."""
    seconds, done = whole.lend(trial, chance), 0
    for _ in range(KILLS):
        status = stop(trial, chance, seconds)
        if status not in (0, STOPPED):
            raise Lost(f"a signal ended it with {status}: {trial.said()[-500:]}")
        done += status == STOPPED
    return done


def stop(
    trial: Trial,
    chance: random.Random,
    seconds: float,
    prelude: Callable[[], object] = lambda: None,
) -> int:
    run = trial.start(prelude=prelude)
    trial.until(run, lambda: "scans: " in trial.said())  # the fork itself is no part of it
    trial.sleep(run, chance, seconds)
    kill(run, chance.choice(signals.STOPS))
    return trial.wait(run)


def reader_killed(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """The process that reads crops, as the kernel does it where memory is short."""
    whole.lend(trial)
    run = trial.start()
    trial.until(run, trial.rows)
    trial.sleep(run, chance, whole.training)
    readers = processes.children(run)
    for reader in readers:
        kill(reader)
    _require_reader_named(trial, trial.wait(run))
    return len(readers)


def _require_reader_named(trial: Trial, status: int) -> None:
    if status and "A process that reads crops has ended" not in trial.said():
        raise Lost(f"it ended with {status} and did not say why: {trial.said()[-500:]}")


def worker_killed(trial: Trial, chance: random.Random, _: Undisturbed) -> int:
    """One of two processes that survey and preprocess scans, or what started them."""
    run = trial.start("-np", 2)
    trial.until(run, lambda: processes.grandchildren(run))
    time.sleep(chance.uniform(0, 2))
    victims = processes.grandchildren if chance.random() < 0.7 else processes.fork_servers
    workers = victims(run)[:1]
    for worker in workers:
        kill(worker)
    require_done_or_refused(trial, trial.wait(run))
    return len(workers)


def small_files(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """No file may become larger than some size (ulimit -f), as with a quota."""
    whole.lend(trial, chance)
    largest = max(path.stat().st_size for path in whole.trial.results.iterdir())
    size = int(10 ** chance.uniform(math.log10(SAID), math.log10(largest)))
    run = trial.start(prelude=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    require_no_room(trial, trial.wait(run))
    return 1


def full_disk(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """A disk that is too small, and grows afterwards. Without root, as `small_files`."""
    if os.getuid():
        return small_files(trial, chance, whole)
    size = chance.randrange(64, _bytes(whole.trial.folder) // 1024)
    mount(trial.folder, f"size={size}k,nr_inodes=0", "tmpfs")
    try:
        trial.make_folders()
        require_no_room(trial, trial.wait(trial.start()))
        mount(trial.folder, "remount,size=1g")
        end_as(trial, whole)
    finally:
        subprocess.run(["umount", trial.folder], check=True)
    trial.make_folders()
    whole.lend(trial)
    return 1


def _bytes(folder: Path) -> int:
    """The bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mount(folder: Path, options: str, *source: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, *source, folder], check=True)


def clock(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """A clock that is years off and runs as it likes, and files of any age."""
    seconds = whole.lend(trial, chance)
    _change_ages(trial.folder, chance)
    away, pace = chance.uniform(-YEARS, YEARS), chance.choice([-600.0, 0.0, 1e4])
    stop(trial, chance, seconds, prelude=partial(trials.set_clock, away, pace))
    return 1


def _change_ages(folder: Path, chance: random.Random) -> None:
    """Of all files in it."""
    for path in folder.rglob("*"):
        changed = time.time() + chance.uniform(-YEARS, YEARS)
        os.utime(path, (changed, changed))


def language(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """Another locale, time zone and encoding of what is printed, in each part of a run."""
    seconds = whole.lend(trial, chance)
    stop(trial, chance, seconds, prelude=partial(trials.set_language, chance))
    trial.finish(prelude=partial(trials.set_language, chance))
    return 1


def twice(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """The same command typed twice at once: one waits for nothing and says who is there."""
    seconds, other = whole.lend(trial, chance), trial.folder / "second.txt"
    first = trial.start()
    trial.sleep(first, chance, seconds)
    second = trial.start(log=other)
    ended = {trial.wait(first), trial.wait(second)}
    _require_one_refused(ended, trial.said() + other.read_text(encoding="utf-8"))
    return 1


def _require_one_refused(ended: set[int], said: str) -> None:
    """At most one of two, which says why."""
    if ended not in ({0}, {0, REFUSED}):
        raise Lost(f"they ended with {sorted(ended)}: {said[-1000:]}")
    if REFUSED in ended and "is being written by process" not in said:
        raise Lost(f"one was refused and did not say why: {said[-1000:]}")


def require_no_room(trial: Trial, status: int) -> None:
    if status == REFUSED and "cannot be written: " not in trial.said():
        raise Lost(f"it did not say what cannot be written: {trial.said()[-500:]}")
    require_done_or_refused(trial, status)


def require_done_or_refused(trial: Trial, status: int) -> None:
    if status not in (0, REFUSED):
        raise Lost(f"it ended with {status}: {trial.said()[-500:]}")


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "asked to stop": stopped,
    "reader killed": reader_killed,
    "clock changed": clock,
    "file size limited": small_files,
    "language changed": language,
    "typed twice at once": twice,
    "disk full": full_disk,
    "worker killed": worker_killed,
}


def campaign(top: Path, minutes: float, seed: int, only: Sequence[str]) -> bool:
    """Do faults in turn, each at least once; print the table; whether all were survived."""
    tally = Tally()
    raw = top / "Aufnahmen für den Versuch"  # no ASCII
    phantoms.write_folder(raw, seeds=range(SCANS), shape=(24, 36, 40))
    whole = undisturbed(top, raw)
    print(f"undisturbed: {whole.seconds:.1f} s, of it {whole.training:.1f} s training", flush=True)
    end = time.monotonic() + 60 * minutes
    while tally.rounds < len(only) or time.monotonic() < end:
        number = tally.rounds
        fault, trial = only[number % len(only)], Trial(top / f"{number}", raw)
        print(f"number {number}: {fault}", file=sys.stderr, flush=True)
        tally.add(fault, *inflict(fault, trial, random.Random(f"{seed} {number}"), whole))
        shutil.rmtree(trial.folder)
    print(f"\n{tally.table(only)}")
    return tally.done == tally.survived


def inflict(
    fault: str, trial: Trial, chance: random.Random, whole: Undisturbed
) -> tuple[int, Lost | None]:
    """How many were done, at least one where it was not survived, and how it was lost."""
    count = 1
    try:
        count = FAULTS[fault](trial, chance, whole)
        end_as(trial, whole)
    except Lost as lost:
        return max(count, 1), lost
    return count, None


def parse_campaign_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nnssl.bench.faults",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="default: each fault once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=FAULTS,
        default=list(FAULTS),
        metavar="FAULT",
        help=f"some of: {', '.join(FAULTS)}",
    )
    args = parser.parse_args(argv)
    if not Path("/proc/self/stat").exists():
        parser.error("processes are monitored through /proc, which only Linux has")
    return args


def main() -> int:
    args = parse_campaign_options()
    trials.import_libraries()
    top = Path(tempfile.mkdtemp(prefix="faults"))  # not one that a forked child would remove
    try:
        return 0 if campaign(top, args.minutes, args.seed, args.only) else 1
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    sys.exit(main())
