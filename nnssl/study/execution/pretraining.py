"""The pretrained checkpoints that a study makes itself, by the commands that a user would type."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.commands import Command
from nnssl.study.design.description import Arm, Study, settings
from nnssl.study.execution import runs
from nnssl.study.execution.datasets import Dataset, labelled
from nnssl.study.execution.executor import Executor
from nnssl.study.execution.flags import flags, recipe_flags
from nnssl.study.execution.job_records import PretrainingJob
from nnssl.study.execution.jobs import Work
from nnssl.study.execution.nnunet_training import NnunetTraining
from nnssl.types import BASE, FINAL, PrintFn

PRESET = "smit"  # of a random start like no pretrained arm
NOT_OF_IT = ("tasks", "budgets", "modality", "recipe")  # what of an arm its pretraining ignores


@dataclass(frozen=True)
class Start(Work):
    """The pretraining of an arm, in starts/<arm>/ unless the arm names its checkpoint."""

    study: Study
    arm: Arm

    @property
    def folder(self) -> Path:
        return self.study.folder / "starts" / self.arm.name

    @property
    def checkpoint(self) -> Path:
        return self.arm.checkpoint or self.folder / "weights" / FINAL

    @property
    def is_ours(self) -> bool:
        """Whether the study makes it."""
        return self.arm.start in _COMMANDS

    @property
    def training(self) -> NnunetTraining | None:
        """With labels, by nnU-Net."""
        return _supervised_training(self) if self.arm.start == "supervised" else None

    @property
    def recipe(self) -> dict:
        """Of the training with labels."""
        return runs.pretraining_recipe(self.study, self.arm)

    @property
    def job(self) -> PretrainingJob:
        training, before = self.training, runs.pretraining_before(self.study, self.arm)
        return PretrainingJob(
            commands=commands_of(self, self.checkpoint),
            makes=self.checkpoint,
            afresh=self.arm.start == "imagenet",
            trains=training.folder if training else None,
            plans=training.plans if training else None,
            described=files.fingerprint(runs.pretraining_of(self.study, self.arm)),
            after=files.fingerprint(before) if before else None,
            fingerprint=files.fingerprint(self._made_of),
        )

    @property
    def _made_of(self) -> dict:
        """What would make it another pretraining; with the paths of this machine, unlike what
        `described` is made of.
        """
        said = {key: value for key, value in settings(self.arm).items() if key not in NOT_OF_IT}
        return said | {"recipe": self.recipe} if self.training else said


def all_starts(study: Study) -> list[Start]:
    """Those that the study makes."""
    return [start for arm in study.arms if (start := Start(study, arm)).is_ours]


def pretrain_missing(study: Study, executor: Executor, print_fn: PrintFn) -> None:
    """All that is missing; those that begin from another arm's encoder come after it."""
    for later in (False, True):
        starts = [start for start in all_starts(study) if bool(start.arm.after) == later]
        if todo := [start.folder for start in _begun(starts) if not start.is_done]:
            print_fn(f"{len(todo)} pretrained checkpoint(s)")
            executor(todo, print_fn)


def _begun(starts: list[Start]) -> list[Start]:
    """With their jobs written."""
    for start in starts:
        start.begin(start.job)
    return starts


def commands_of(start: Start, checkpoint: Path) -> list[Command]:
    """What makes the `checkpoint`."""
    return _COMMANDS[start.arm.start](start, checkpoint)


def _pretrain(start: Start, checkpoint: Path) -> list[Command]:
    arm, study = start.arm, start.study
    before = [Start(study, other).checkpoint for other in study.arms if other.name == arm.after]
    encoder = [arm.encoder] if arm.encoder else []
    data = _flag_arguments({"-i": arm.scans, "-d": arm.datasets, "-a": encoder, "--from": before})
    run_flags = ["-device", study.device, "-o", str(checkpoint.parent)]
    return [
        ["nnssl_pretrain", "-m", str(arm.method), *data, *run_flags, *flags(arm.options), "--c"]
    ]


def _flag_arguments(flagged: Mapping[str, Sequence[str | Path]]) -> list[str]:
    """Flags and their values; those without any are left out."""
    return [str(word) for flag, words in flagged.items() if words for word in (flag, *words)]


def _convert(start: Start, checkpoint: Path) -> list[Command]:
    arm = start.arm
    return [["nnssl_convert", str(arm.weights), "-o", str(checkpoint), *flags(arm.options)]]


def _supervised_training(start: Start) -> NnunetTraining:
    """nnU-Net's training with labels that gives a supervised start its encoder."""
    dataset, configuration = labelled(start.arm)
    name, plans = Dataset(dataset).name, f"{start.study.name}-{start.arm.name}"
    return NnunetTraining(name, configuration, "all", "SwinScratchTrainer", plans)


def _supervise(start: Start, checkpoint: Path) -> list[Command]:
    training, arm = _supervised_training(start), start.arm
    plan = nnssl_plan(Dataset(labelled(arm)[0]), training.plans)
    export = [sys.executable, "-m", "nnssl.study.execution.supervised"]
    return [
        [*plan, "-a", arm.encoder or PRESET, *recipe_flags(start.recipe)],
        # nnU-Net starts again where there is nothing to continue
        [*training.command(start.study.device), "--c"],
        [*export, str(training.folder), str(checkpoint)],
    ]


def nnssl_plan(dataset: Dataset, name: str, base: str = BASE) -> Command:
    return ["nnssl_plan", "-d", dataset.number, "-p", base, "--name", name]


_COMMANDS: dict[str, Callable[[Start, Path], list[Command]]] = {
    "pretrain": _pretrain,
    "imagenet": _convert,
    "supervised": _supervise,
}
