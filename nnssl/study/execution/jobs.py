"""The two kinds of job, and the folder of each: job.json, log.txt, outcome.json and, of a finished
fine-tuning, rows.jsonl. `nnssl.study.execution.job` does one.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from nnssl import files
from nnssl.commands import Command
from nnssl.study.execution.nnunet_training import NnunetTraining, has_checkpoint
from nnssl.study.rows import KINDS, Budget
from nnssl.types import PREPROCESSED

JOB, LOG, OUTCOME, ROWS = "job.json", "log.txt", "outcome.json", "rows.jsonl"
BY_SURFACE = {"surface_dice", "hd95"}  # of a case's row
MEASURES = "the same nnssl_study run then measures that run again"
# of a job: what its scores do not depend on, or what follows from its fingerprint
APART = (
    "device", "elsewhere", "train", "val", "checkpoint", "planned", "data", "described",
    "conditions", "after",
)  # fmt: skip
DONE, FAILED, NOT_DONE = "done", "failed", "missing"
# why a training would have another folder, and what to put back
ENTRY_MOVED = (
    "splits_final.json was made again, and the same cases are now another entry of it",
    "splits_final.json",
)
RENAMED = ("the study or the dataset has another name now", "name")


class StudyError(RuntimeError):
    """The study cannot continue; the message says what to do."""


class OtherSettingsError(StudyError):
    """`folder` holds the job `before`, of other settings."""

    def __init__(self, folder: Path, before: Job) -> None:
        trained = f" and nnU-Net's training under {before.plans}" if before.plans else ""
        super().__init__(
            f"{folder.name} was started with other settings (arm, the arm it comes after, recipe, "
            "checkpoint or cases; a random start is like the first pretrained arm unless it says "
            f"like:). Give the study or the arm another name, or remove {folder}{trained}"
        )


class OtherDataError(StudyError):
    """`folder` holds the job `before`, begun with data or plans that have changed since."""

    def __init__(self, folder: Path, before: FineTuningJob) -> None:
        super().__init__(
            f"the preprocessed data of {before.dataset} or nnU-Net's plans have changed since "
            f"{folder.name} was begun (spacing, patch, batch, normalisation or intensities of "
            f"{before.configuration}). Put the earlier plans and data back, or give the study "
            f"another name, or remove {folder} and nnU-Net's training under {before.plans}"
        )


class MovedTrainingError(StudyError):
    """The job in `folder` was begun in another folder of nnU-Net's than it would be trained in."""

    def __init__(self, folder: Path, before: NnunetTraining, now: NnunetTraining) -> None:
        cause, back = RENAMED if before.fold == now.fold else ENTRY_MOVED
        super().__init__(
            f"{folder.name} was begun in {before.folder}, but would be trained in {now.folder}: "
            f"{cause}. Put the earlier {back} back, or remove {folder} and what nnU-Net trained "
            "in both of these folders"
        )


class Outcome(NamedTuple):
    """What became of a job. state: "done", "failed" (then with the reason) or "missing"."""

    state: str
    reason: str | None = None

    @property
    def in_short(self) -> str:
        """The first line of the reason."""
        return next(iter(str(self.reason or "").strip().splitlines()), "no reason was noted")


@dataclass(frozen=True, kw_only=True)
class PretrainingJob:
    """Commands, one after the other, that make the pretrained checkpoint `makes`.

    afresh:      what an earlier attempt made is removed first; its command would not overwrite it.
    trains:      the folder of nnU-Net's training among the commands.
    plans:       of that training.
    described:   as the fingerprint, but the same where the study's folder lies elsewhere; None: not
                 known, as in earlier versions.
    after:       changes with the pretraining that it starts from; None: without one, or not known.
    fingerprint: changes with whatever would make it another pretraining.
    """

    commands: list[Command]
    makes: Path
    afresh: bool = False
    trains: Path | None = None
    plans: str | None = None
    described: str | None = None
    after: str | None = None
    fingerprint: str

    def is_other(self, before: Job) -> bool:
        """Whether it would make another encoder than the job `before`."""
        if not isinstance(before, PretrainingJob):
            return True
        is_same_start = not (before.after and self.after) or before.after == self.after
        is_moved = before.described is not None and before.described == self.described
        return not (is_same_start and (is_moved or before.fingerprint == self.fingerprint))

    def to_json(self) -> dict:
        """As earlier versions wrote it, where nothing that they did not know is said."""
        trains = str(self.trains) if self.trains else None
        content = asdict(self) | {"makes": str(self.makes), "trains": trains}
        unknown = {key for key in ("described", "after") if content[key] is None}
        return {key: value for key, value in content.items() if key not in unknown}

    @classmethod
    def from_json(cls, content: dict) -> PretrainingJob:
        trains = Path(content["trains"]) if content.get("trains") else None
        return cls(**content | {"makes": Path(content["makes"]), "trains": trains})


@dataclass(frozen=True, kw_only=True)
class FineTuningJob:
    """A run: nnU-Net's training and validation, then the rows of its results.

    cases:       that it is trained with.
    dataset:     the full name.
    tolerance:   mm, of the surface Dice.
    elsewhere:   of what another environment trains: its program, or "" where somebody trains by
                 hand; None: nnU-Net here.
    train:       the cases that it must be trained with; None: not known, as in earlier versions.
    val:         those that it must have been validated on; None as with `train`.
    checkpoint:  the sha256 of the pretrained one; None: without one, or as with `train`.
    planned:     changes with nnU-Net's plans; None as with `train`, or trained elsewhere.
    data:        changes with nnU-Net's preprocessing; None: not known, as in earlier versions.
    described:   changes with what the description says of the training; None as with `data`.
    conditions:  changes with what it says of the start and the validation; None as with `data`.
    after:       changes with what it says of the pretraining before that of the start; None:
                 without one, or as with `data`.
    fingerprint: changes with whatever would make it another training.
    """

    run: str
    task: str
    arm: str
    budget: Budget
    cases: int
    seed: int
    dataset: str
    configuration: str
    fold: int
    trainer: str
    plans: str
    device: str
    tolerance: float
    elsewhere: str | None = None
    train: list[str] | None = None
    val: list[str] | None = None
    checkpoint: str | None = None
    planned: str | None = None
    data: str | None = None
    described: str | None = None
    conditions: str | None = None
    after: str | None = None
    fingerprint: str

    @property
    def training(self) -> NnunetTraining:
        return NnunetTraining(self.dataset, self.configuration, self.fold, self.trainer, self.plans)

    def is_other(self, before: Job) -> bool:
        """Whether it would be another training than the job `before`."""
        return before.fingerprint != self.fingerprint

    def require_same_plans(self) -> None:
        """Raises StudyError where nnU-Net's plans are others than when the job was written."""
        path = Path(os.environ[PREPROCESSED], self.dataset, f"{self.plans}.json")
        if self.planned and files.fingerprint(files.read_json(path)) != self.planned:
            raise StudyError(
                f"{path} has changed since {self.run} was begun; type nnssl_study run with this "
                "study's description, which checks the plans and writes them again where necessary"
            )

    def to_json(self) -> dict:
        """As earlier versions wrote it, where nothing that they did not know is said."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: dict) -> FineTuningJob:
        return cls(**content)


Job = PretrainingJob | FineTuningJob


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
