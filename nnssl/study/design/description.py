"""The description of a study: study.yaml, read strictly into frozen dataclasses.

    arms  x  tasks  x  budgets  x  seeds (or folds)   =   the runs

An arm is a start of the training; the arm `scratch` is what all others are compared with. Each run
has a name, `<task>__<arm>__<budget>__<seed>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.study.design import values
from nnssl.study.design.parts import (
    ALL,
    BASELINE,
    OTHERS,
    RECIPE,
    REST,
    STARTS,
    Arm,
    Budget,
    Task,
    arm_of,
    budget_of,
    recipe_of,
    settings,
    task_of,
)
from nnssl.study.design.values import DescriptionError

__all__ = [
    "ALL",
    "BASELINE",
    "OTHERS",
    "RECIPE",
    "REST",
    "STARTS",
    "Arm",
    "Budget",
    "DescriptionError",
    "Study",
    "Task",
    "load",
    "settings",
]

MOST_RUNS = 100_000


@dataclass(frozen=True)
class Study:
    """A whole description. `folder` is where the study writes; nnU-Net's files stay in nnU-Net's
    folders.
    """

    name: str
    folder: Path
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    by_fold: bool  # `seeds` are folds: each with validation cases of its own
    device: str = "cuda"
    recipe: Mapping = field(default_factory=dict)
    slurm: Mapping = field(default_factory=dict)  # submitit's parameters of a job
    source: Mapping = field(default_factory=dict)  # the file's content, as it is

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    def arms_of(self, task: Task) -> list[Arm]:
        return [arm for arm in self.arms if not arm.tasks or task.name in arm.tasks]

    @property
    def pairs(self) -> list[tuple[Task, Arm]]:
        """Every task with each arm that is tried on it."""
        return [(task, arm) for task in self.tasks for arm in self.arms_of(task)]

    def budgets_of(self, arm: Arm) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if not arm.budgets or budget in arm.budgets)

    def recipe_of(self, task: Task, arm: Arm) -> dict:
        return {**self.recipe, **task.recipe, **arm.recipe}


def load(path: Path | str) -> Study:
    """Read and check. Raises FileNotFoundError or DescriptionError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no description at {path}; write one with: nnssl_study init {path}"
        )
    content = values.read(path)
    try:
        return _study(content, path.resolve())
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from None


def _study(given: object, path: Path) -> Study:
    known = (
        "name",
        "folder",
        "arms",
        "tasks",
        "budgets",
        "seeds",
        "folds",
        "device",
        "recipe",
        "slurm",
    )
    content = values.mapping(given, "the description")
    values.require_known(content, known, "the description")
    for needed in ("arms", "tasks"):
        if not content.get(needed):
            raise DescriptionError(
                f"the description names no {needed}; see what nnssl_study init writes"
            )
    if "seeds" in content and "folds" in content:
        raise DescriptionError(
            "give seeds or folds, not both: a fold is repeated by its other cases"
        )
    name = values.name(content.get("name", path.stem), "the study's name")
    folder = values.path(content.get("folder", path.with_suffix("").name), path.parent, "folder")
    if folder == path:
        raise DescriptionError(f"folder {folder} is the description itself; name another one")
    study = Study(
        name=name,
        folder=folder,
        arms=tuple(arm_of(entry, path.parent) for entry in values.a_list(content["arms"], "arms")),
        tasks=tuple(task_of(entry) for entry in values.a_list(content["tasks"], "tasks")),
        budgets=tuple(
            budget_of(entry) for entry in values.a_list(content.get("budgets", [ALL]), "budgets")
        ),
        seeds=tuple(
            values.count(n, "a seed or fold")
            for n in values.a_list(content.get("folds", content.get("seeds", [0])), "seeds")
        ),
        by_fold="folds" in content,
        device=values.one_of(content.get("device", "cuda"), ("cuda", "cpu", "mps"), "device"),
        recipe=recipe_of(content.get("recipe", {}), "the study"),
        slurm=values.mapping(content.get("slurm", {}), "slurm"),
        source=content,
    )
    _check(study)
    return study


def _check(study: Study) -> None:
    for what, named in {
        "arm": [arm.name for arm in study.arms],
        "task": [task.name for task in study.tasks],
        "budget": list(study.budgets),
        "seed": list(study.seeds),
    }.items():
        values.require_once(what, named)
    count = len(study.arms) * len(study.tasks) * len(study.budgets) * len(study.seeds)
    if count > MOST_RUNS:
        raise DescriptionError(
            f"{len(study.arms)} arms x {len(study.tasks)} tasks x {len(study.budgets)} budgets x "
            f"{len(study.seeds)} seeds are {count} runs; a study has {MOST_RUNS} at most"
        )
    _check_rest(study)
    plans = Counter(f"{task.name}-{arm.name}" for task in study.tasks for arm in study.arms)
    if same := [name for name, times in plans.items() if times > 1]:
        raise DescriptionError(
            f"a task's name and an arm's joined by - make the same plans twice: {', '.join(same)}; "
            "rename one of them"
        )
    baseline = [arm for arm in study.arms if arm.name == BASELINE]
    if not baseline or baseline[0].start != "scratch" or baseline[0].tasks or baseline[0].budgets:
        raise DescriptionError(
            "one arm is the baseline of all comparisons, on every task and budget: {name: "
            f"{BASELINE}, start: scratch}}; the arms are "
            f"{', '.join(f'{arm.name} ({arm.start})' for arm in study.arms)}"
        )
    arms, tasks = {arm.name: arm for arm in study.arms}, {task.name for task in study.tasks}
    for arm in study.arms:
        if unknown := sorted(set(arm.tasks) - tasks):
            raise DescriptionError(
                f"arm {arm.name} names tasks that are not there: {', '.join(unknown)}"
            )
        if unknown := [str(budget) for budget in arm.budgets if budget not in study.budgets]:
            raise DescriptionError(
                f"arm {arm.name} names budgets that the study does not have: {', '.join(unknown)}; "
                f"it has {', '.join(map(str, study.budgets))}"
            )
        pretrained = [other.name for other in study.arms if other.start not in (BASELINE, *OTHERS)]
        if arm.like and arm.like not in pretrained:
            raise DescriptionError(
                f"arm {arm.name} is to be like {arm.like}, which has no pretrained encoder; with "
                f"one: {pretrained}"
            )
        first = [name for name in pretrained if arms[name].after is None]
        if arm.after and arm.after not in first:
            raise DescriptionError(
                f"arm {arm.name} is pretrained after {arm.after}, which has no encoder before it; "
                f"with one: {first}"
            )


def _check_rest(study: Study) -> None:
    on_the_rest = [task.name for task in study.tasks if task.validate == REST]
    if on_the_rest and (study.by_fold or ALL in study.budgets):
        raise DescriptionError(
            f"task {on_the_rest[0]} validates on the rest, on all cases that are not trained on: "
            f"give seeds and numbers of cases, not folds and not the budget {ALL}"
        )
