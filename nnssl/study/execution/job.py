"""One job, `python -m nnssl.study.execution.job FOLDER`: what folder/job.json says, to its end, in
a process of its own.

Two kinds. A run: nnUNetv2_train (it continues where it was killed), then the rows of results. A
start: commands that make a pretrained checkpoint. A second process on the same job waits for the
first and then finds it done.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from nnssl import files, hook, signals
from nnssl.commands import Command, CommandError, run_logged, tail
from nnssl.study.execution import runs
from nnssl.study.measurement import segmentation
from nnssl.types import FINAL

BY_HAND = "nnUNetv2_train_pretrained"  # upstream's, for weights of its nnssl
LINES = 15  # of the log, in the reason of a failure
CHECKPOINTS = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")


def do(folder: Path | str) -> dict:
    """Do the job; its outcome, {"state": "done" | "failed", "reason"}, is written as well. Only
    exceptions that no command caused leave it."""
    folder = Path(folder)
    with _alone(folder) as lock:
        if runs.state(folder)[0] == "done":
            return files.read_json(folder / runs.OUTCOME)
        job = files.read_json(folder / runs.JOB)
        outcome = {"state": "done", "reason": None}
        try:
            (train if "commands" not in job else make)(job, folder, lock)
        except (OSError, ValueError, RuntimeError) as error:
            outcome = {"state": "failed", "reason": str(error)}
        files.write_json(folder / runs.OUTCOME, outcome)
        return outcome


def make(job: dict, folder: Path, lock: int) -> None:
    """A start: its commands, one after the other; each starts again or continues by itself."""
    if job["afresh"]:  # left by a kill, and its command would not overwrite it
        Path(job["makes"]).unlink(missing_ok=True)
    if job["trains"]:
        drop_cut_short(Path(job["trains"]))
    for command in job["commands"]:
        execute(command, folder / runs.LOG, lock)
    if not Path(job["makes"]).is_file():
        raise CommandError(f"all commands ended well, but there is no {job['makes']}")


def train(job: dict, folder: Path, lock: int) -> None:
    """A run: train and validate by nnU-Net, then write the rows."""
    fold, place = runs.fold_folder(**runs.place(job)), runs.place(job)
    program = job.get("elsewhere", "nnUNetv2_train")
    if not validated(fold) and not program:
        command = runs.training(**place, device=job["device"], program=BY_HAND)
        raise CommandError(
            f"not trained yet; in the environment of its trainer: {shlex.join(command)} (of "
            f"upstream's own programs the one that trains {job['trainer']}, with nnU-Net's folders "
            "of this study; then the same line of nnssl_study collects it)"
        )
    if not validated(fold):
        command = runs.training(**place, device=job["device"], program=program)
        command += ["--c"] if can_continue(fold) else []
        execute(command, folder / runs.LOG, lock, *([_bare()] if "elsewhere" in job else []))
    if not validated(fold):
        raise CommandError(
            f"nnU-Net ended well, but there is no whole validation/summary.json in {fold}"
        )
    if "elsewhere" in job:
        _require_same_cases(fold, job["val"])
    files.write_json_lines(folder / runs.ROWS, rows(job, fold))


def _require_same_cases(fold: Path, wanted: Sequence[str]) -> None:
    """Raises CommandError for a training that was validated on other cases than this study's."""
    entries = files.read_json(fold / "validation" / "summary.json")["metric_per_case"]
    ending = files.read_json(fold.parent / "dataset.json")["file_ending"]
    found = {Path(entry["reference_file"]).name.removesuffix(ending) for entry in entries}
    if found != set(wanted):
        raise CommandError(
            f"{fold} was validated on other cases than this study's: {len(found - set(wanted))} of "
            f"{len(found)} are not its, {len(set(wanted) - found)} of its are missing. It was "
            "trained with another splits_final.json: remove that fold and train it again"
        )


def validated(fold: Path) -> bool:
    """nnU-Net writes the summary last."""
    try:
        return bool(files.read_json(fold / "validation" / "summary.json"))
    except (OSError, ValueError):  # none, or cut short by a kill
        return False


def drop_cut_short(fold: Path) -> None:
    """Remove the checkpoints that a kill or a full disk cut short, or nnU-Net would stumble over
    them.
    """
    for name in CHECKPOINTS:
        if (fold / name).is_file() and not zipfile.is_zipfile(fold / name):
            (fold / name).unlink()


def can_continue(fold: Path) -> bool:
    """Whether there is a whole checkpoint for --c; others are removed."""
    drop_cut_short(fold)
    return any((fold / name).is_file() for name in CHECKPOINTS)


def rows(job: dict, fold: Path) -> list[dict]:
    """The row of the run, then those of its epochs and of its cases."""
    import torch

    # nnU-Net's own
    saved = torch.load(fold / FINAL, map_location="cpu", weights_only=False, mmap=True)
    epochs = list(_epochs(job["run"], saved["logging"]))
    head = {
        key: job[key]
        for key in (
            "run",
            "task",
            "arm",
            "budget",
            "cases",
            "seed",
            "configuration",
            "trainer",
            "plans",
        )
    }
    hours = sum(row["seconds"] for row in epochs) / 3600
    run = {
        "kind": "run",
        **head,
        "state": "done",
        "hours": hours,
        "epochs": len(epochs),
        "reason": None,
    }
    cases = [
        {"kind": "case", "run": job["run"], **row}
        for row in segmentation.cases(fold, job["tolerance"])
    ]
    return [run, *epochs, *cases]


def _epochs(run: str, log: dict) -> Iterator[dict]:
    columns = (
        log["mean_fg_dice"],
        log["train_losses"],
        log["val_losses"],
        log["epoch_start_timestamps"],
        log["epoch_end_timestamps"],
    )
    for epoch, (dice, train_loss, val_loss, start, end) in enumerate(zip(*columns, strict=False)):
        losses = {"dice": dice, "train_loss": train_loss, "val_loss": val_loss}
        values = {name: float(value) if isfinite(value) else None for name, value in losses.items()}
        yield {"kind": "epoch", "run": run, "epoch": epoch, **values, "seconds": float(end - start)}


def execute(
    command: Command, log: Path, lock: int | None = None, env: dict[str, str] | None = None
) -> None:
    """Run with all output in `log`; the child shares the lock, which it holds on to should this
    process be killed. `env`: `environment()` by default.

    Raises CommandError, with the end of the log.
    """
    if status := run_logged(command, log, env or environment(), lock=lock):
        raise CommandError(
            f"{Path(command[0]).name} ended with status {status}\n$ {shlex.join(command)}\n"
            f"The end of {log}:\n{tail(log, LINES)}"
        )


def environment() -> dict[str, str]:
    """The caller's, without a checkpoint that no plans name, and with our trainers where nnU-Net
    looks.
    """
    kept = {name: value for name, value in os.environ.items() if name != "nnssl_checkpoint"}
    trainers = hook.with_ours(kept.get(hook.VARIABLE, ""))
    return {"OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg", **kept, hook.VARIABLE: trainers}


def _bare() -> dict[str, str]:
    """For the programs of another environment, which must see neither our trainers nor our package:
    MIC-DKFZ's is imported by the same name.
    """
    ours = (hook.VARIABLE, "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in environment().items() if name not in ours}


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def main() -> int:
    import signal

    # so that the command is ended too
    with signals.handled(lambda *_: sys.exit(143), [signal.SIGTERM]):
        outcome = do(sys.argv[1])
    return 0 if outcome["state"] == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
