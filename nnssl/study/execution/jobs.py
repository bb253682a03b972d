"""The folder of a job: job.json, log.txt, outcome.json and, of a finished fine-tuning, rows.jsonl.
`nnssl.study.execution.job` does one.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path

from nnssl import files
from nnssl.study.execution.job_records import (
    DONE,
    FAILED,
    NOT_DONE,
    FineTuningJob,
    Job,
    MovedTrainingError,
    OtherDataError,
    OtherSettingsError,
    Outcome,
    PretrainingJob,
    StudyError,
)
from nnssl.study.execution.nnunet_training import has_checkpoint
from nnssl.study.rows import KINDS

JOB, LOG, OUTCOME, ROWS = "job.json", "log.txt", "outcome.json", "rows.jsonl"
BY_SURFACE = {"surface_dice", "hd95"}  # of a case's row
MEASURES = "the same nnssl_study run then measures that run again"
# of a job: what its scores do not depend on, or what follows from its fingerprint
APART = (
    "device", "elsewhere", "train", "val", "checkpoint", "planned", "data", "described",
    "conditions", "after",
)  # fmt: skip


class Work:
    """What a job does: a run, or the pretraining of an arm. `folder` holds its job."""

    folder: Path

    @property
    def outcome(self) -> Outcome:
        return outcome(self.folder)

    @property
    def is_done(self) -> bool:
        return self.outcome.state == DONE

    def check(self, job: Job) -> None:
        """Raises StudyError where the folder holds a job of other settings, or nnU-Net's a training
        that this study did not begin.
        """
        _refuse_taken(self.folder, job)
        _refuse_changed(self.folder, _job_before(self.folder), job)

    def begin(self, job: Job) -> None:
        """Write job.json, unless it is there. Raises StudyError as `check`."""
        _refuse_taken(self.folder, job)
        write_job(self.folder, job)

    def fail(self, reason: str) -> None:
        """Note a failure that no process of the job could note; what is done stays done."""
        if not self.is_done:
            write_outcome(self.folder, Outcome(FAILED, reason))


def read_job(folder: Path) -> Job:
    """Of job.json. Raises ValueError where it lacks something."""
    content = noted(folder)
    kind = PretrainingJob if "commands" in content else FineTuningJob
    _require_whole(folder, kind, content)
    # another version may have written more
    return kind.from_json({f.name: content[f.name] for f in fields(kind) if f.name in content})


def noted(folder: Path) -> dict:
    """The content of job.json; {} where it holds something else."""
    content = files.read_json(folder / JOB)
    return content if isinstance(content, dict) else {}


def _require_whole(folder: Path, kind: type[Job], content: dict) -> None:
    required = [f.name for f in fields(kind) if f.default is MISSING]
    if lacking := [name for name in required if name not in content]:
        raise ValueError(
            f"{folder / JOB} lacks {', '.join(lacking)}; remove {folder}, and the same command of "
            "nnssl_study writes it again"
        )


def write_job(folder: Path, job: Job) -> None:
    """Raises OtherSettingsError or OtherDataError."""
    if (before := _job_before(folder)) == job:
        return
    _refuse_changed(folder, before, job)
    if (
        isinstance(before, FineTuningJob)
        and isinstance(job, FineTuningJob)
        and not _is_measured_alike(before, job)
    ):
        _measure_again(folder, before, job)
    files.write_json(folder / JOB, job.to_json())


def _job_before(folder: Path) -> Job | None:
    return read_job(folder) if (folder / JOB).is_file() else None


def _refuse_changed(folder: Path, before: Job | None, job: Job) -> None:
    """Raises OtherSettingsError, or OtherDataError where both jobs know their data."""
    if before and job.is_other(before):
        raise OtherSettingsError(folder, before)
    if isinstance(before, FineTuningJob) and isinstance(job, FineTuningJob):
        _refuse_other_data(folder, before, job)


def _refuse_other_data(folder: Path, before: FineTuningJob, job: FineTuningJob) -> None:
    if before.data and job.data and before.data != job.data:
        raise OtherDataError(folder, before)


def _is_measured_alike(before: FineTuningJob, job: FineTuningJob) -> bool:
    """Not so with another tolerance, or in another place: measured again, not trained. What does
    not touch the scores, and what an earlier version did not note, change nothing.
    """
    return replace(before, **{name: getattr(job, name) for name in APART}) == job


def _measure_again(folder: Path, before: FineTuningJob, job: FineTuningJob) -> None:
    """From now on not done; the rows stay until there are others. Raises StudyError where nothing
    is left to measure.
    """
    if (folder / ROWS).is_file() and not job.training.has_predictions:
        raise StudyError(
            f"{folder.name} was measured with a tolerance of {before.tolerance:g} mm, and the "
            f"description now says {job.tolerance:g} mm, but nnU-Net's predictions in "
            f"{job.training.folder / 'validation'} are gone. Put the earlier tolerance back, or "
            f"remove {folder} and nnU-Net's training, to train it again"
        )
    (folder / OUTCOME).unlink(missing_ok=True)


def read_rows(folder: Path) -> list[dict]:
    """Of a finished run's rows.jsonl, which is written as a whole: its own row, then those of its
    epochs and cases. Raises StudyError where one of them is damaged.
    """
    try:
        rows = files.read_json_lines(folder / ROWS, whole=True)
    except ValueError:
        rows = []
    if not (rows and all(row.get("kind") in list(KINDS) for row in rows)):
        raise StudyError(
            f"{folder / ROWS} is damaged: it is empty, or a line of it is no row. Remove "
            f"{folder / OUTCOME}; {MEASURES}"
        )
    return rows


def training_fingerprint(folder: Path) -> str | None:
    """Of a finished run's rows, which tell its training from any other; None without them. What is
    measured with a tolerance does not count: that may be measured again.
    """
    rows = read_rows(folder) if (folder / ROWS).is_file() else []
    kept = [{key: row[key] for key in row.keys() - BY_SURFACE} for row in rows]
    return files.fingerprint(kept) if kept else None


def networks_of(folder: Path) -> set[str]:
    """What tells a run's networks from others: the hash of its pretrained checkpoint, where it has
    noted one, and the fingerprint of its training.
    """
    checkpoint = noted(folder).get("checkpoint") if (folder / JOB).is_file() else None
    return {one for one in (checkpoint, training_fingerprint(folder)) if one}


def _refuse_taken(folder: Path, job: Job) -> None:
    """Raises StudyError where a run or start would take for its own what another has trained."""
    if isinstance(job, FineTuningJob):
        _refuse_other_run(folder, job)
    else:
        _refuse_other_start(folder, job)


def _refuse_other_run(folder: Path, job: FineTuningJob) -> None:
    if (folder / JOB).is_file():
        _refuse_moved(folder, job)
    elif job.elsewhere is None and job.training.is_begun:
        raise _taken(folder, job.training.folder)


def _refuse_other_start(folder: Path, job: PretrainingJob) -> None:
    """One that is done has its encoder."""
    if job.trains is None or outcome(folder).state == DONE:
        return
    before = _job_before(folder)
    trained = before.trains if isinstance(before, PretrainingJob) else None
    # nnU-Net's results may lie elsewhere now
    is_ours = trained is not None and trained.parts[-3:] == job.trains.parts[-3:]
    if not is_ours and has_checkpoint(job.trains):
        raise _taken(folder, job.trains)


def _taken(folder: Path, training: Path) -> StudyError:
    return StudyError(
        f"{training} holds a training that this study did not start; {folder.name} would continue "
        "it or count it as its own. Give this study another name (name: in the description), or "
        "remove that training"
    )


def _refuse_moved(folder: Path, job: FineTuningJob) -> None:
    """Raises MovedTrainingError where the run's training would have another folder than before, and
    one of the two is not empty: that of another run would be continued or counted. What is trained
    elsewhere may be moved by hand, before its run is done.
    """
    stored = read_job(folder)
    if not isinstance(stored, FineTuningJob) or job.is_other(stored):
        return  # of other settings altogether, which `write_job` says
    before, now = stored.training, job.training
    begun = before.is_begun, now.is_begun
    by_hand = job.elsewhere is not None
    is_mixed = (all(begun) or outcome(folder).state == DONE) if by_hand else any(begun)
    if before != now and is_mixed:
        raise MovedTrainingError(folder, before, now)


def outcome(folder: Path) -> Outcome:
    try:
        content = files.read_json(folder / OUTCOME)
    except (FileNotFoundError, NotADirectoryError):
        return Outcome(NOT_DONE)
    if not (isinstance(content, dict) and content.get("state") in (DONE, FAILED)):
        raise StudyError(
            f'{folder / OUTCOME} is damaged: it must have "state": "{DONE}" or "{FAILED}". Remove '
            f"it; {MEASURES}"
        )
    return Outcome(content["state"], content.get("reason"))


def write_outcome(folder: Path, outcome: Outcome) -> None:
    files.write_json(folder / OUTCOME, outcome._asdict())


def forget_failure(folder: Path) -> None:
    """Before another attempt."""
    if outcome(folder).state == FAILED:
        (folder / OUTCOME).unlink(missing_ok=True)  # another call may have been quicker
