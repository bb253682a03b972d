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

from nnssl.options import option, options_of
from nnssl.study.design import values
from nnssl.study.design.parts import (
    ALL,
    OTHERS,
    RECIPE,
    REST,
    STARTS,
    Arm,
    Task,
    arm_of,
    budget_of,
    merged,
    recipe_of,
    settings,
    task_of,
)
from nnssl.study.design.values import DescriptionError, Place
from nnssl.study.rows import BASELINE, Budget

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
    "load_study",
    "settings",
]

MOST_RUNS = 100_000


def seed_of(entry: object, at: Place) -> int:
    return values.count(entry, at.named("a seed or fold"))


@dataclass(frozen=True)
class Study:
    """A whole description. nnU-Net's files stay in nnU-Net's folders."""

    name: str = option(help="of the study", read=values.name)
    folder: Path = option(help="where the study writes")
    arms: tuple[Arm, ...] = option(help="starts of the training", read=arm_of)
    tasks: tuple[Task, ...] = option(help="labelled datasets", read=task_of)
    budgets: tuple[Budget, ...] = option((ALL,), "numbers of training cases", read=budget_of)
    seeds: tuple[int, ...] = option((0,), "of the subsets; or folds", read=seed_of)
    by_fold: bool = False  # `seeds` are folds: each with validation cases of its own
    device: str = option("cuda", "of the trainings", choices=("cuda", "cpu", "mps"))
    recipe: Mapping = option(factory=dict, help="of every fine-tuning", read=recipe_of)
    slurm: Mapping = option(factory=dict, help="submitit's parameters of a job")
    source: Mapping = field(default_factory=dict)  # the file's content, as it is

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    @property
    def runs(self) -> Path:
        """A folder for each."""
        return self.folder / "runs"

    def arms_of(self, task: Task) -> list[Arm]:
        return [arm for arm in self.arms if not arm.tasks or task.name in arm.tasks]

    @property
    def pairs(self) -> list[tuple[Task, Arm]]:
        """Every task with each arm that is tried on it."""
        return [(task, arm) for task in self.tasks for arm in self.arms_of(task)]

    def budgets_of(self, arm: Arm) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if not arm.budgets or budget in arm.budgets)

    def recipe_of(self, task: Task, arm: Arm) -> dict:
        return merged(self.recipe, task.recipe, arm.recipe)


STUDY = {each.name: each for each in options_of(Study)}


def load_study(path: Path | str) -> Study:
    """Read and check. Raises FileNotFoundError or DescriptionError."""
    content = _yaml_content(Path(path))
    try:
        return _study(content, Path(path).resolve())
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from None


def _yaml_content(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(
            f"description {path} does not exist; write one with: nnssl_study init {path}"
        )
    return values.read_yaml(path)


def _study(read: object, path: Path) -> Study:
    at = Place("", path.parent)
    content = values.mapping(read, at.named("the description"))
    _check_keys(content, at.named("the description"))
    entry = {"name": path.stem, "folder": path.with_suffix("").name, **_said(content)}
    given = values.fields(entry, STUDY | {"folds": STUDY["seeds"]}, at)
    if by_fold := "folds" in given:
        given["seeds"] = given.pop("folds")
    study = Study(**given, by_fold=by_fold, source=content)
    if study.folder == path:
        raise DescriptionError(
            f"folder {path} is the description file itself; choose another folder"
        )
    _check_consistency(study)
    return study


def _said(content: Mapping) -> dict:
    """null counts as left out."""
    return {key: value for key, value in content.items() if value is not None}


def _check_keys(content: Mapping, at: Place) -> None:
    values.require_known(content, [*STUDY, "folds"], at)
    _require_named(content, "arms", at)
    _require_named(content, "tasks", at)
    if "seeds" in content and "folds" in content:
        raise DescriptionError("give seeds or folds, not both")


def _require_named(content: Mapping, needed: str, at: Place) -> None:
    if not content.get(needed):
        raise DescriptionError(f"{at} has no {needed}; see the template of nnssl_study init")


def _check_consistency(study: Study) -> None:
    """Raises DescriptionError where the parts do not fit each other."""
    _check_names(study)
    _check_count(study)
    _check_rest(study)
    _check_folds(study)
    _check_plans(study)
    _check_baseline(study)
    for arm in study.arms:
        _check_tasks(study, arm)
        _check_budgets(study, arm)
        _check_like(study, arm)
        _check_after(study, arm)


def _check_names(study: Study) -> None:
    """Check that none occurs twice."""
    values.require_once("arm", [arm.name for arm in study.arms])
    values.require_once("task", [task.name for task in study.tasks])
    values.require_once("budget", list(study.budgets))
    values.require_once("fold" if study.by_fold else "seed", list(study.seeds))


def _check_count(study: Study) -> None:
    arms, tasks = len(study.arms), len(study.tasks)
    budgets, seeds = len(study.budgets), len(study.seeds)
    count = arms * tasks * budgets * seeds
    if count > MOST_RUNS:
        raise DescriptionError(
            f"{arms} arms x {tasks} tasks x {budgets} budgets x {seeds} seeds are {count} runs; "
            f"allowed are at most {MOST_RUNS}"
        )


def _check_rest(study: Study) -> None:
    on_the_rest = [task.name for task in study.tasks if task.validate == REST]
    if on_the_rest and (study.by_fold or ALL in study.budgets):
        raise DescriptionError(
            f"task {on_the_rest[0]} validates on all cases that are not trained on: give seeds "
            f"and numbers of cases, not folds and not the budget {ALL}"
        )


def _check_folds(study: Study) -> None:
    own = [f"fold: {task.fold} of task {task.name}" for task in study.tasks if task.fold]
    if study.by_fold and own:
        raise DescriptionError(
            f"the study's folds replace {own[0]}; leave it out, or give seeds in place of folds"
        )


def _check_plans(study: Study) -> None:
    """Check that no two plans have one name: those of an arm on a task are named by both, those of
    a supervised pretraining by its arm.
    """
    if same := _doubled_plans(study):
        raise DescriptionError(
            "plans are named by task and arm joined by -, those of a supervised pretraining by the "
            f"arm alone; this gives the same plans name twice: {', '.join(same)}; rename one of "
            "the arms or tasks"
        )


def _doubled_plans(study: Study) -> list[str]:
    plans = Counter(f"{task.name}-{arm.name}" for task in study.tasks for arm in study.arms)
    plans.update(arm.name for arm in study.arms if arm.start == "supervised")
    return [name for name, times in plans.items() if times > 1]


def _check_baseline(study: Study) -> None:
    if not any(arm.is_baseline for arm in study.arms):
        raise _no_baseline(study)


def _no_baseline(study: Study) -> DescriptionError:
    arms = ", ".join(f"{arm.name} ({arm.start})" for arm in study.arms)
    return DescriptionError(
        "one arm must be the baseline of all comparisons, on every task and budget: {name: "
        f"{BASELINE}, start: scratch}}; got the arms {arms}"
    )


def _check_tasks(study: Study, arm: Arm) -> None:
    """Check that the tasks to which an arm is limited are the study's."""
    if unknown := sorted(set(arm.tasks) - {task.name for task in study.tasks}):
        raise DescriptionError(f"arm {arm.name} names unknown tasks: {', '.join(unknown)}")


def _check_budgets(study: Study, arm: Arm) -> None:
    """As `_check_tasks`."""
    if unknown := [str(budget) for budget in arm.budgets if budget not in study.budgets]:
        raise DescriptionError(
            f"arm {arm.name} names budgets that the study does not have: {', '.join(unknown)}; "
            f"it has {', '.join(map(str, study.budgets))}"
        )


def _check_like(study: Study, arm: Arm) -> None:
    """That the arm whose encoder this one has, has a pretrained one."""
    names = [other.name for other in study.arms if other.is_pretrained]
    if arm.like and arm.like not in names:
        raise DescriptionError(
            f"arm {arm.name} has like: {arm.like}, which has no pretrained encoder; allowed: "
            f"{names}"
        )


def _check_after(study: Study, arm: Arm) -> None:
    """That the arm whose encoder this one starts from has one before it."""
    first = [other.name for other in study.arms if other.is_pretrained and other.after is None]
    if arm.after and arm.after not in first:
        raise DescriptionError(
            f"arm {arm.name} is pretrained after {arm.after}, which is not pretrained itself; "
            f"allowed: {first}"
        )
