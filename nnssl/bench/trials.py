"""Whole runs of nnssl_pretrain as processes of their own, to be disturbed: start, watch, compare.

Each is forked from this process, which has imported all libraries already, and then does what
`python -m nnssl pretrain ...` does: a start costs a second instead of ten. Pictures, which would
take four fifths of so short a run, are not drawn.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import locale
import os
import random
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnssl.bench.processes import processes, state
from nnssl.types import FINAL

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LONGEST = 600.0  # seconds after which a run counts as one that waits for ever
TO_END = 60.0  # seconds that the helpers of a killed run may take to end
LANGUAGES = ("C", "POSIX", "C.UTF-8", "de_DE.UTF-8", "fr_FR.UTF-8", "tr_TR.UTF-8", "ja_JP.UTF-8")
STEPS = 6
LINE = [
    "-m", "simmim", "--name", "made", "-a", "tiny", "-device", "cpu", "--crop", "32", "32",
    "--batch-size", "2", "--steps", str(STEPS), "--save-every", "2", "--log-every", "1",
    "--workers", "1", "--c",
]  # fmt: skip
LIBRARIES = (
    "torch",
    "SimpleITK",
    "blosc2",
    "matplotlib.pyplot",
    "nnunetv2.preprocessing.cropping.cropping",
    "nnunetv2.preprocessing.resampling.default_resampling",
    "nnunetv2.training.dataloading.nnunet_dataset",
    "nnssl.train.pretrain",
    "nnssl.cli",
)


class Lost(AssertionError):
    """A fault was not survived."""


def import_libraries() -> None:
    """What a run needs, with one thread: forked from a process with many of them it may hang."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.setdefault("MPLBACKEND", "Agg")
    for name in LIBRARIES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("nnssl.train.log").Log.draw = lambda self: None


@dataclass
class Trial:
    """nnU-Net's folders below `folder`, and the same command typed there again and again.

    raw: the folder of scans.
    """

    folder: Path
    raw: Path

    def __post_init__(self) -> None:
        self.make_folders()

    def make_folders(self) -> None:
        for name in VARIABLES:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        return self.folder / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.folder / "nnUNet_results" / "nnssl" / "made" / "simmim__tiny_2d"

    @property
    def log(self) -> Path:
        """What runs print; not in `folder`, whose disk may be full."""
        return self.folder.with_name(f"{self.folder.name}.txt")

    def start(
        self, *more: object, prelude: Callable[[], object] = lambda: None, log: Path | None = None
    ) -> int:
        """The process of a new run, leader of its own group; `prelude` is what it does first."""
        line = [*LINE, "-i", self.raw, *(more if "-np" in more else ("-np", 0, *more))]
        log = log or self.log
        log.unlink(missing_ok=True)  # what the last run has said
        child = os.fork()
        if child == 0:
            _as_command(list(map(str, line)), self.folder, log, prelude)
        return child

    def wait(self, run: int) -> int:
        """Its status; minus the signal that ended it. Raises Lost where it does not end."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            pid, status = os.waitpid(run, os.WNOHANG)
            if pid:
                self._require_clean_end(run)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.03)
        _kill_all(run)
        raise Lost(f"a run did not end within {LONGEST:.0f} s: {self.said()[-500:]}")

    def _require_clean_end(self, run: int) -> None:
        """No process of it may be left, and no traceback printed. Raises Lost."""
        self._require_alone(run)
        if "Traceback (most recent call last)" in self.said():
            raise Lost(f"a traceback was printed: {self.said()[-1500:]}")

    def finish(self, *more: object, prelude: Callable[[], object] = lambda: None) -> None:
        """The line typed once more, undisturbed, must end well."""
        status = self.wait(self.start(*more, prelude=prelude))
        if status:
            raise Lost(f"the same command ended with {status}: {self.said()[-500:]}")

    def said(self) -> str:
        """What the last run has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def rows(self) -> list[dict]:
        """The log; a last line may be truncated."""
        try:
            lines = (self.results / "log.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        return [row for line in lines if (row := _log_row(line)) is not None]

    def until(self, run: int, holds: Callable[[], object]) -> None:
        """Wait until something holds, or the run has ended."""
        deadline = time.monotonic() + LONGEST
        while not holds() and time.monotonic() < deadline and state(run) not in ("Z", ""):
            time.sleep(0.03)

    def sleep(self, run: int, chance: random.Random, seconds: float) -> None:
        """Until a random moment of a run that takes some `seconds`: in any step left, or before."""
        steps = chance.randrange(len(self.rows()), STEPS + 1)
        if steps:
            self.until(run, lambda: len(self.rows()) >= steps)
        time.sleep(chance.uniform(0, seconds / STEPS if steps else seconds / 2))

    def _require_alone(self, run: int) -> None:
        """What the run started must end as well. Raises Lost."""
        deadline = time.monotonic() + TO_END
        while left := [pid for pid, group, _ in processes() if group == run]:
            if time.monotonic() > deadline:
                os.killpg(run, signal.SIGKILL)
                raise Lost(f"{len(left)} processes outlived their run by {TO_END:.0f} s")
            time.sleep(0.1)


def _kill_all(run: int) -> None:
    """The whole group of a run that does not end."""
    os.killpg(run, signal.SIGKILL)
    os.waitpid(run, 0)


def _log_row(line: str) -> dict | None:
    """The row that a line of a log holds; None where the line was truncated."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _as_command(words: list[str], folder: Path, log: Path, prelude: Callable[[], object]) -> None:
    """Become `python -m nnssl pretrain ...`; does not return."""
    status = 1
    try:
        os.setsid()
        _print_into(log)
        for name in VARIABLES:
            os.environ[name] = str(folder / name)
        sys.argv = ["nnssl", "pretrain", *words]
        prelude()
        status = _run_main()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        _exit_process(status)


def _print_into(log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _run_main() -> int:
    """The exit status of the command in `sys.argv`."""
    try:
        runpy.run_module("nnssl", run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return 1


def _exit_process(status: int) -> None:
    """What Python does when it ends, but nothing of the process that was forked."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] Python's own
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def set_clock(away: float, pace: float) -> None:
    """Let Python's clock be `away` seconds off, and run `pace` times as fast."""
    real, began = time.time, time.time()
    time.time = lambda: began + away + pace * (real() - began)


def set_language(chance: random.Random) -> None:
    """Another locale, time zone, and encoding of what is printed."""
    name = _set_locale(chance.sample(LANGUAGES, len(LANGUAGES)))
    os.environ["TZ"] = chance.choice(["UTC", "Asia/Kathmandu", "America/St_Johns", "nowhere"])
    time.tzset()
    if "UTF-8" not in name:
        _print_ascii()


def _print_ascii() -> None:
    """As Python does of itself on a terminal that has no UTF-8."""
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "ascii", "strict", line_buffering=True)
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, "ascii", "backslashreplace")


def _set_locale(names: list[str]) -> str:
    """The first that this machine has, which is set; the C locale is on every one."""
    for name in names:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, name)
            os.environ["LC_ALL"] = os.environ["LANG"] = name
            return name
    return "C"


def outcome(trial: Trial) -> dict:
    """Weights, optimiser and losses of a finished run, and nothing that a clock has made."""
    import torch

    names = ("checkpoint_latest.pth", FINAL)
    latest, final = (torch.load(trial.results / name, weights_only=True) for name in names)
    losses = [(row["step"], row["total"], row["grad_norm"]) for row in trial.rows()]
    return {
        "final": final["network_weights"],
        "latest": latest["network_weights"],
        "state": latest["training_state"],
        "losses": losses,
    }


def require_equal(ours: object, theirs: object, where: str = "") -> None:
    """Bit for bit. Raises Lost, which names where the first difference is."""
    for name, our_part, their_part in _paired_parts(ours, theirs):
        require_equal(our_part, their_part, f"{where}{name}")
    if not _is_equal(ours, theirs):
        raise Lost(f"{where[1:]} differs from the run that nothing had disturbed")


def _paired_parts(ours: object, theirs: object) -> Iterator[tuple[str, object, object]]:
    """The name of each part of two dictionaries or lists, and what both have there."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        yield from ((f".{name}", ours[name], theirs[name]) for name in ours)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        for number, pair in enumerate(zip(ours, theirs, strict=False)):
            yield f"[{number}]", *pair


def _is_equal(ours: object, theirs: object) -> bool:
    """Of what has `_paired_parts` only whether they are as many, and of the same names."""
    import torch

    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys()
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs)
    return ours == theirs
