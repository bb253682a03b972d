"""One job, `python -m nnssl.study.execution.job FOLDER`: run the job of folder/job.json to its end,
in its own process.

Two kinds. A fine-tuning: nnUNetv2_train (it continues where it was killed), then the rows of
results. A pretraining: commands that make a checkpoint. A second process on the same job waits for
the first and then finds it done.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import zipfile
from pathlib import Path

from nnssl import files, signals
from nnssl.commands import Command, CommandError
from nnssl.study import file_lock
from nnssl.study.design import splits
from nnssl.study.execution import jobs, shell
from nnssl.study.execution.job_records import (
    DONE,
    FAILED,
    FineTuningJob,
    Job,
    Outcome,
    PretrainingJob,
)
from nnssl.study.execution.nnunet_training import NNUNET
from nnssl.study.measurement import segmentation, training
from nnssl.study.rows import Row, RunRow
from nnssl.types import FINAL, PREPROCESSED

BY_HAND = "nnUNetv2_train_pretrained"  # upstream's, for weights of its nnssl
CHECKPOINTS = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")


def run_job(folder: Path | str) -> dict[str, str | None]:
    """Do the job; its outcome, {"state": "done" | "failed", "reason"}, is written as well. Only
    exceptions that no command caused leave it.
    """
    folder = Path(folder)
    with file_lock.exclusive(folder / ".lock") as lock:
        outcome = jobs.outcome(folder)
        if outcome.state != DONE or _lacks_rows(folder):
            outcome = _attempt(folder, lock)
            jobs.write_outcome(folder, outcome)
        return outcome._asdict()


def _lacks_rows(folder: Path) -> bool:
    """Whether a finished fine-tuning has to be measured again."""
    has_rows = (folder / jobs.ROWS).is_file()
    return not has_rows and isinstance(jobs.read_job(folder), FineTuningJob)


def _attempt(folder: Path, lock: int) -> Outcome:
    try:
        _work(folder, lock)
    except (OSError, ValueError, RuntimeError) as error:
        return Outcome(FAILED, str(error))
    return Outcome(DONE)


def _work(folder: Path, lock: int) -> None:
    job = jobs.read_job(folder)
    if isinstance(job, PretrainingJob):
        run_pretraining(job, folder, lock)
    else:
        fine_tune(job, folder, lock)


def run_pretraining(job: PretrainingJob, folder: Path, lock: int) -> None:
    """Its commands, one after the other; each starts again or continues by itself."""
    _clear(job)
    for command in job.commands:
        shell.execute(command, folder / jobs.LOG, lock)
    if not job.makes.is_file():
        raise CommandError(f"all commands succeeded, but {job.makes} does not exist")


def _clear(job: PretrainingJob) -> None:
    """Remove what a kill has left and no command would overwrite."""
    if job.afresh:
        job.makes.unlink(missing_ok=True)
    if job.trains:
        remove_truncated_checkpoints(job.trains)


def fine_tune(job: FineTuningJob, folder: Path, lock: int) -> None:
    """Train and validate by nnU-Net, then write the rows."""
    fold = job.training.folder
    if not validated(fold):
        _train(job, folder, lock)
    _require_validated(fold)
    if job.val is not None:
        _require_same_cases(fold, job.val)
    _measure(job, folder)


def _measure(job: Job, folder: Path) -> None:
    """Write the rows: with the tolerance that job.json has at the end, as another call may have
    changed it meanwhile.
    """
    while isinstance(job, FineTuningJob):
        measured = [row.to_json() for row in rows(job, job.training.folder)]
        if (now := jobs.read_job(folder)) == job:
            files.write_json_lines(folder / jobs.ROWS, measured)
            return
        job = now


def rows(job: FineTuningJob, fold: Path) -> list[Row]:
    """The row of the run, then those of its epochs and of its cases."""
    epochs = training.epochs(job.run, fold)
    run = RunRow(
        run=job.run,
        task=job.task,
        arm=job.arm,
        budget=job.budget,
        cases=job.cases,
        seed=job.seed,
        configuration=job.configuration,
        trainer=job.trainer,
        plans=job.plans,
        state=DONE,
        hours=sum(row.seconds or 0.0 for row in epochs) / 3600,
        epochs=len(epochs),
        iterations=training.iterations(fold),
    )
    return [run, *epochs, *segmentation.case_rows(job.run, fold, job.tolerance)]


def _train(job: FineTuningJob, folder: Path, lock: int) -> None:
    _require_same_split(job)
    job.require_same_plans()
    if job.elsewhere == "":
        raise CommandError(_by_hand(job))
    remove_truncated_checkpoints(job.training.folder)
    environment = shell.others_environment() if job.elsewhere else None
    shell.execute(_training_command(job), folder / jobs.LOG, lock, environment)


def _require_same_split(job: FineTuningJob) -> None:
    """Raises CommandError where nnU-Net would find other cases than the job's, or none: it would
    then draw some of its own.
    """
    if job.train is None:
        return
    path = Path(os.environ[PREPROCESSED], job.dataset, splits.FILE)
    entries = splits.read(path) if path.is_file() else []
    entry = entries[job.fold] if job.fold < len(entries) else {}
    if (entry.get("train"), entry.get("val")) != (job.train, job.val):
        raise CommandError(
            f"entry {job.fold} of {path} no longer holds the cases of {job.run}: the file was "
            "replaced. Put the earlier one back, or type the same command of nnssl_study again, "
            "which adds the study's entries"
        )


def _training_command(job: FineTuningJob) -> Command:
    """It continues where there is something to continue."""
    command = job.training.command(job.device, job.elsewhere or NNUNET)
    return [*command, "--c"] if can_continue(job.training.folder) else command


def _by_hand(job: FineTuningJob) -> str:
    """What to type."""
    command = shlex.join(job.training.command(job.device, BY_HAND))
    return (
        f"not trained yet; in the environment of its trainer, type: {command} (of upstream's own "
        f"programs the one that trains {job.trainer}, with nnU-Net's folders of this study; then "
        "the same command of nnssl_study collects it)"
    )


def _validated_cases(fold: Path) -> set[str]:
    ending = files.read_json(fold.parent / "dataset.json")["file_ending"]
    references = [entry["reference_file"] for entry in segmentation.summary(fold)]
    return {Path(reference).name.removesuffix(ending) for reference in references}


def _require_same_cases(fold: Path, wanted: list[str]) -> None:
    """Raises CommandError for a training that was validated on other cases than this study's."""
    found = _validated_cases(fold)
    if found != set(wanted):
        raise CommandError(f"{fold} {_other_cases(found, set(wanted))}")


def _other_cases(found: set[str], own: set[str]) -> str:
    return (
        f"was not validated on this study's cases: {len(found - own)} of {len(found)} do not "
        f"belong to it, {len(own - found)} of its cases are missing. It was trained with another "
        "splits_final.json: remove that fold and train it again"
    )


def _require_validated(fold: Path) -> None:
    if not validated(fold):
        raise CommandError(f"nnU-Net succeeded, but {fold} has no complete validation/summary.json")


def validated(fold: Path) -> bool:
    """nnU-Net writes the summary last."""
    try:
        return bool(files.read_json(fold / "validation" / "summary.json"))
    except (OSError, ValueError):  # none, or truncated by a kill
        return False


def remove_truncated_checkpoints(fold: Path) -> None:
    """What a kill or a full disk has cut short: nnU-Net would stumble over it."""
    for name in CHECKPOINTS:
        if (fold / name).is_file() and not zipfile.is_zipfile(fold / name):
            (fold / name).unlink()


def can_continue(fold: Path) -> bool:
    """Whether there is a checkpoint for --c."""
    return any((fold / name).is_file() for name in CHECKPOINTS)


def main() -> int:
    # so that the command is ended too
    with signals.handled(lambda *_: sys.exit(143), [signal.SIGTERM]):
        outcome = run_job(sys.argv[1])
    return 0 if outcome["state"] == DONE else 1


if __name__ == "__main__":
    sys.exit(main())
