"""Which runs a study has, where each lives, and what it is trained with.

A run's folder in the study, runs/<run>/, holds its job (`nnssl.study.execution.jobs`). The training
itself lies where nnU-Net puts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nnssl.study.design.description import BASELINE, OTHERS, Arm, Budget, Study, Task, settings
from nnssl.study.design.parts import NEEDS, merged
from nnssl.study.execution.datasets import Dataset
from nnssl.study.execution.jobs import ROWS, Work

TRAINER = "SwinSSLTrainer"  # of arms with pretrained weights, unless the recipe names another
FIXED_TRAINERS = {"scratch": "SwinScratchTrainer", "default": "DefaultNetworkTrainer"}
EPOCHS = 1000  # nnU-Net's own, where the recipe says nothing
DATA = ("dataset", "configuration", "plans")  # what of a task decides on the training's data
VALIDATION = ("fold", "validate", "subject")  # and on its cases
OF_A_START = {"start", *chain.from_iterable(chain(*needed) for needed in NEEDS.values())}
PATHS = ("checkpoint", "scans", "weights", "train")


@dataclass(frozen=True)
class ArmOnTask:
    """An arm on a task: what its runs, which differ by budget and seed, have in common."""

    study: Study
    task: Task
    arm: Arm

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.task.dataset)

    @property
    def recipe(self) -> dict:
        return self.study.recipe_of(self.task, self.arm)

    @property
    def trainer(self) -> str:
        fixed = self.arm.trainer or FIXED_TRAINERS.get(self.arm.start)
        return fixed or self.recipe.get("trainer") or TRAINER

    @property
    def plans(self) -> str:
        """The name of the plans: of their own for each arm and task, since a model's folder is
        named after them. What is trained elsewhere has those that were made there.
        """
        if self.arm.start == "elsewhere" and self.arm.plans:
            return self.arm.plans
        return f"{self.study.name}-{self.task.name}-{self.arm.name}"

    @property
    def epochs(self) -> int:
        """0 where nobody here decides on them."""
        return 0 if self.arm.start == "elsewhere" else int(self.recipe.get("epochs") or EPOCHS)

    @property
    def described(self) -> dict:
        """What the description alone says of the training; nothing that is known from files."""
        task = {key: value for key, value in settings(self.task).items() if key in DATA}
        said = {"task": task, "recipe": self.recipe, "trainer": self.trainer}
        if self.arm.start == "elsewhere":
            return said | {"recipe": {}, "plans": self.plans}
        if self.arm.start == "default" and self.arm.plans:
            return said | {"plans": self.arm.plans}
        return said

    @property
    def conditions(self) -> dict:
        """What else of the description a result depends on: how the training starts, and which
        cases it is validated on.
        """
        task = {key: value for key, value in settings(self.task).items() if key in VALIDATION}
        arms = dict.fromkeys(arm.name for arm in (self.arm, self.source) if arm)
        starts = {name: _start_of(self.study, name) for name in arms}
        return {"task": task, "by_fold": self.study.by_fold, "starts": starts}

    @property
    def after(self) -> dict | None:
        """What the description says of the pretraining before that of `source`, if there is one."""
        return pretraining_before(self.study, self.source) if self.source else None

    @property
    def source(self) -> Arm | None:
        """The arm whose checkpoint the plans name. For a random start, which gets encoder and
        intensities from it but no weights: the one it is said to be like, else the first pretrained
        one of the task. None: a preset, or another network.
        """
        if self.arm.start == BASELINE:
            return self._alike
        return self.arm if self.arm.start not in OTHERS else None

    @property
    def _alike(self) -> Arm | None:
        """The arm that gives a random start its encoder: `like`, or else the first pretrained arm
        of the task; None where it names a preset.
        """
        if self.arm.encoder and not self.arm.like:
            return None
        named = [other for other in self.study.arms if other.name == self.arm.like]
        on_task = self.study.arms_of(self.task)
        pretrained = [other for other in on_task if other.is_pretrained]
        return next(iter(named or pretrained), None)

    @property
    def runs(self) -> list[StudyRun]:
        """All of them, done or not."""
        return [
            StudyRun(self.study, self.task, self.arm, budget, seed)
            for seed in self.study.seeds
            for budget in self.study.budgets_of(self.arm)
        ]


@dataclass(frozen=True)
class StudyRun(ArmOnTask, Work):
    """One training: an arm on a task with a budget of cases and a seed (or fold)."""

    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.name}__{self.arm.name}__{self.budget}__{self.seed}"

    @property
    def folder(self) -> Path:
        return self.study.runs / self.name

    @property
    def is_done(self) -> bool:
        """Measured as well: a copy may lack the rows, which the next run writes again."""
        return super().is_done and (self.folder / ROWS).is_file()

    @property
    def turn(self) -> tuple[int, int]:
        """Runs are sorted by it: every arm of a small budget before the next one."""
        return self.study.seeds.index(self.seed), self.study.budgets.index(self.budget)


def _start_of(study: Study, arm: str) -> dict:
    """Paths as they are written: elsewhere the same file has another one."""
    entries = {entry.get("name"): entry for entry in study.source.get("arms", ())}
    (parsed,) = (settings(other) for other in study.arms if other.name == arm)
    written = {key: str(value) for key, value in entries.get(arm, {}).items() if key in PATHS}
    return {key: value for key, value in {**parsed, **written}.items() if key in OF_A_START}


def pretraining_of(study: Study, arm: Arm) -> dict:
    """What the description says of an arm's encoder, with paths as they are written."""
    said = _start_of(study, arm.name)
    return said | {"recipe": pretraining_recipe(study, arm)} if arm.start == "supervised" else said


def pretraining_before(study: Study, arm: Arm) -> dict | None:
    """That of the arm after which this one is pretrained; None without `after`."""
    named = [other for other in study.arms if other.name == arm.after]
    return pretraining_of(study, named[0]) if named else None


def pretraining_recipe(study: Study, arm: Arm) -> dict:
    """The recipe of a pretraining with labels, which belongs to no task."""
    return merged(study.recipe, arm.recipe)


def all_pairs(study: Study) -> list[ArmOnTask]:
    return [ArmOnTask(study, task, arm) for task, arm in study.pairs]


def all_runs(study: Study) -> list[StudyRun]:
    """All runs, in the order in which they are done."""
    return sorted((run for pair in all_pairs(study) for run in pair.runs), key=lambda run: run.turn)
