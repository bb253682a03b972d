"""The two kinds of job, what became of one, and the errors of a study."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from nnssl import files
from nnssl.commands import Command
from nnssl.study.execution.nnunet_training import NnunetTraining
from nnssl.study.rows import Budget
from nnssl.types import PREPROCESSED

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
