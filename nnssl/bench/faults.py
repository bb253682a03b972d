"""Faults on purpose: tiny pretrainings on the CPU, killed and hindered, whose end must be the same.

    python -m nnssl.bench.faults [--minutes 10] [--seed 0] [--only "killed" "full disk"]

After every fault the same line is typed again until it ends well. Weights, optimiser and losses
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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnssl import phantoms, signals
from nnssl.bench import trials
from nnssl.bench.trials import Lost, Trial

STOPPED, REFUSED = 75, 1  # exit statuses
KILLS = 3  # in a row
SAID = 20_000  # bytes, more than a run prints
MOUNT = ("mount", "-t", "tmpfs", "-o")
SCANS = 3
YEARS = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Undisturbed:
    """The run to compare with: folders, outcome, the seconds of all of it and of training."""

    trial: Trial
    outcome: dict
    seconds: float
    training: float

    def lend(self, trial: Trial, chance: random.Random | None = None) -> float:
        """The seconds of a run of `trial`. It finds its scans preprocessed; with `chance` half
        of the time.
        """
        if chance and chance.random() < 0.5:
            return self.seconds
        shutil.copytree(self.trial.data, trial.data, dirs_exist_ok=True)
        return self.training


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
    with contextlib.suppress(ProcessLookupError):
        os.kill(run, chance.choice(signals.STOPS))
    return trial.wait(run)


def reader_killed(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """The process that reads crops, as the kernel does it where memory is short."""
    whole.lend(trial)
    run = trial.start()
    trial.until(run, lambda: trial.rows())
    trial.sleep(run, chance, whole.training)
    readers = trials.children(run)
    for reader in readers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader, signal.SIGKILL)
    status = trial.wait(run)
    if status and "A process that reads crops is gone" not in trial.said():
        raise Lost(f"it ended with {status} and did not say why: {trial.said()[-500:]}")
    return len(readers)


def worker_killed(trial: Trial, chance: random.Random, _: Undisturbed) -> int:
    """One of two processes that survey and preprocess scans, or what started them."""
    run = trial.start("-np", 2)
    trial.until(run, lambda: trials.grandchildren(run))
    time.sleep(chance.uniform(0, 2))
    of = trials.grandchildren if chance.random() < 0.7 else trials.fork_servers
    workers = of(run)[:1]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    if (status := trial.wait(run)) not in (0, REFUSED):
        raise Lost(f"it ended with {status}: {trial.said()[-500:]}")
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
    needed = sum(path.stat().st_size for path in whole.trial.folder.rglob("*") if path.is_file())
    size = chance.randrange(64, needed // 1024)
    subprocess.run([*MOUNT, f"size={size}k,nr_inodes=0", "tmpfs", trial.folder], check=True)
    try:
        trial.make_folders()
        require_no_room(trial, trial.wait(trial.start()))
        subprocess.run([*MOUNT, "remount,size=1g", trial.folder], check=True)
        end_as(trial, whole)
    finally:
        subprocess.run(["umount", trial.folder], check=True)
    trial.make_folders()
    whole.lend(trial)
    return 1


def clock(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """A clock that is years off and runs as it likes, and files of any age."""
    seconds = whole.lend(trial, chance)
    for path in trial.folder.rglob("*"):
        os.utime(path, (when := time.time() + chance.uniform(-YEARS, YEARS), when))
    away, pace = chance.uniform(-YEARS, YEARS), chance.choice([-600.0, 0.0, 1e4])
    stop(trial, chance, seconds, prelude=partial(trials.set_clock, away, pace))
    return 1


def language(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """Another locale, time zone and encoding of what is printed, in each part of a run."""
    seconds = whole.lend(trial, chance)
    stop(trial, chance, seconds, prelude=partial(trials.set_language, chance))
    trial.finish(prelude=partial(trials.set_language, chance))
    return 1


def twice(trial: Trial, chance: random.Random, whole: Undisturbed) -> int:
    """The same line typed twice at once: one waits for nothing and says who is there."""
    seconds, other = whole.lend(trial, chance), trial.folder / "second.txt"
    first = trial.start()
    trial.sleep(first, chance, seconds)
    second = trial.start(log=other)
    ended = [trial.wait(run) for run in (first, second)]
    said = trial.said() + other.read_text(encoding="utf-8")
    if not set(ended) <= {0, REFUSED} or 0 not in ended:
        raise Lost(f"they ended with {ended}: {said[-1000:]}")
    if REFUSED in ended and "is being written by process" not in said:
        raise Lost(f"one was refused and did not say why: {said[-1000:]}")
    return 1


def require_no_room(trial: Trial, status: int) -> None:
    if status == REFUSED and "cannot be written: " not in trial.said():
        raise Lost(f"it did not say what cannot be written: {trial.said()[-500:]}")
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


def end_as(trial: Trial, whole: Undisturbed) -> None:
    """The line typed once more ends well, and as the undisturbed run did. Raises Lost."""
    trial.finish()
    trials.require_equal(trials.outcome(trial), whole.outcome)
    if left := [path.name for path in trial.results.rglob(".tmp-*")]:
        raise Lost(f"half a file is left: {left}")


def undisturbed(top: Path, raw: Path) -> Undisturbed:
    """Twice: the same bits, and the second time with the scans of the first."""
    took, made = [], Trial(top / "undisturbed", raw)
    again = Trial(top / "again", raw)
    for trial in (made, again):
        began = time.monotonic()
        trial.finish()
        took.append(time.monotonic() - began)
        if trial is made:
            shutil.copytree(made.data, again.data, dirs_exist_ok=True)
    whole = Undisturbed(made, trials.outcome(made), *took)
    end_as(again, whole)
    return whole


def campaign(top: Path, minutes: float, seed: int, only: Sequence[str]) -> bool:
    """Do faults in turn, each at least once; print the table; whether all were survived."""
    done, survived = Counter(), Counter()
    raw = top / "Aufnahmen für den Versuch"  # no ASCII
    phantoms.write_folder(raw, seeds=range(SCANS), shape=(24, 36, 40))
    whole = undisturbed(top, raw)
    print(f"undisturbed: {whole.seconds:.1f} s, of it {whole.training:.1f} s training", flush=True)
    end, number = time.monotonic() + 60 * minutes, 0
    while number < len(only) or time.monotonic() < end:
        fault, trial = only[number % len(only)], Trial(top / f"{number}", raw)
        count = 1
        print(f"number {number}: {fault}", file=sys.stderr, flush=True)
        try:
            count = FAULTS[fault](trial, random.Random(f"{seed} {number}"), whole)
            end_as(trial, whole)
            survived[fault] += count
        except Lost as lost:
            print(f"\nLOST, number {number}, {fault}: {lost}", flush=True)
            count = max(count, 1)
        done[fault] += count
        shutil.rmtree(trial.folder)
        number += 1
    print("\n| fault | done | survived |\n|---|---|---|")
    for fault in only:
        print(f"| {fault} | {done[fault]} | {survived[fault]} |")
    print(f"| all, in {number} rounds | {done.total()} | {survived.total()} |")
    return done == survived


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nnssl.bench.faults",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="default: each fault once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT",
                        help=f"some of: {', '.join(FAULTS)}")  # fmt: skip
    args = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        parser.error("processes are monitored through /proc, which only Linux has")
    trials.import_libraries()
    top = Path(tempfile.mkdtemp(prefix="faults"))  # not one that a forked child would remove
    try:
        return 0 if campaign(top, args.minutes, args.seed, args.only) else 1
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    sys.exit(main())
