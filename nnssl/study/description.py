"""The description of a study: study.yaml, read strictly into frozen dataclasses.

    arms  x  tasks  x  budgets  x  seeds (or folds)   =   the runs

An arm is a start of the training; the arm `scratch` is what all others are compared with. Each run has a name,
`<task>__<arm>__<budget>__<seed>`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnssl.network.planned import BASE

Budget = int | str  # a number of cases, or ALL

ALL = "all"
BASELINE = "scratch"
STARTS = ("scratch", "checkpoint", "pretrain", "default", "imagenet", "supervised")
NEEDS = {  # what an arm must say beside its name and start, and what else it may say
    "scratch": ((), ("like", "encoder")),
    "checkpoint": (("checkpoint",), ()),
    "pretrain": (("method",), ("scans", "datasets", "encoder", "after", "options")),
    "default": ((), ()),
    "imagenet": (("weights",), ("options",)),
    "supervised": (("dataset", "configuration"), ("encoder",)),
}
NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")  # no "__": nnU-Net and the runs' names join by it
PLANS = re.compile(r"[\w.-]+")  # a file's name, not a path
RECIPE = (  # of `nnssl_plan`, as its flags are called, and the trainer
    "trainer", "decoder", "patch", "batch_size", "epochs", "iterations", "val_iterations", "foreground", "mirror", "lr",
    "head_lr", "encoder_lr", "layer_decay", "warmup_iterations", "warmup_epochs", "unfreeze_every", "weight_decay",
    "schedule", "drop_path", "ema",
)  # fmt: skip


class DescriptionError(ValueError):
    """The description is wrong; the message says where, what was got and what is allowed."""


@dataclass(frozen=True)
class Arm:
    """One start of the training. `NEEDS` says which fields belong to which start."""

    name: str
    start: str
    checkpoint: Path | None = None  # a checkpoint_final.pth
    method: str | None = None  # of nnssl_pretrain
    scans: tuple[Path, ...] = ()  # folders, for nnssl_pretrain -i
    datasets: tuple[str, ...] = ()  # nnU-Net raw datasets, for nnssl_pretrain -d
    encoder: str | None = None  # a preset
    options: Mapping[str, Any] = field(default_factory=dict)  # further flags of nnssl_pretrain or nnssl_convert
    weights: Path | None = None  # a local file, for nnssl_convert
    dataset: str | None = None  # labelled, for the supervised pretraining
    configuration: str | None = None  # of that dataset
    after: str | None = None  # the arm whose encoder the pretraining starts from
    like: str | None = None  # the arm whose encoder and intensities the random start has
    tasks: tuple[str, ...] = ()  # none named: all
    budgets: tuple[Budget, ...] = ()  # none named: all
    modality: str | None = None  # of the pretraining, for the report
    recipe: Mapping[str, Any] = field(default_factory=dict)  # over the task's and the study's


@dataclass(frozen=True)
class Task:
    """One labelled nnU-Net dataset."""

    name: str
    dataset: str  # ID or name
    configuration: str = "3d_fullres"
    plans: str = BASE  # nnU-Net's, from which spacing and data come
    fold: int = 0  # whose validation cases are every run's
    modality: str | None = None  # CT, MR, ...: for the report
    subject: str | None = None  # a regular expression: what it finds in a case's name is the subject
    tolerance: float = 2.0  # mm, of the surface Dice
    recipe: Mapping[str, Any] = field(default_factory=dict)  # over the study's


@dataclass(frozen=True)
class Study:
    """A whole description. `folder` is where the study writes; nnU-Net's files stay in nnU-Net's folders."""

    name: str
    folder: Path
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    by_fold: bool  # `seeds` are folds: each with validation cases of its own
    device: str = "cuda"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)  # submitit's parameters of a job
    source: Mapping[str, Any] = field(default_factory=dict)  # the file's content, as it is

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    def arms_of(self, task: Task) -> list[Arm]:
        return [arm for arm in self.arms if not arm.tasks or task.name in arm.tasks]

    def budgets_of(self, arm: Arm) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if not arm.budgets or budget in arm.budgets)

    def recipe_of(self, task: Task, arm: Arm) -> dict[str, Any]:
        return {**self.recipe, **task.recipe, **arm.recipe}


def load(path: Path | str) -> Study:
    """Read and check. Raises FileNotFoundError or DescriptionError."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no description at {path}; write one with: nnssl_study init {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path} is not YAML: {error}") from error
    try:
        return _study(content, path.resolve())
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from None


def _study(content: Any, path: Path) -> Study:
    known = ("name", "folder", "arms", "tasks", "budgets", "seeds", "folds", "device", "recipe", "slurm")
    content = _mapping(content, "the description")
    _demand_known(content, known, "the description")
    for needed in ("arms", "tasks"):
        if not content.get(needed):
            raise DescriptionError(f"the description names no {needed}; see what nnssl_study init writes")
    if "seeds" in content and "folds" in content:
        raise DescriptionError("give seeds or folds, not both: a fold is repeated by its other cases")
    name = _name(content.get("name", path.stem), "the study's name")
    folder = _path(content.get("folder", path.with_suffix("").name), path.parent)
    if folder == path:
        raise DescriptionError(f"folder {folder} is the description itself; name another one")
    study = Study(
        name=name,
        folder=folder,
        arms=tuple(_arm(entry, path.parent) for entry in _list(content["arms"], "arms")),
        tasks=tuple(_task(entry) for entry in _list(content["tasks"], "tasks")),
        budgets=tuple(_budget(entry) for entry in _list(content.get("budgets", [ALL]), "budgets")),
        seeds=tuple(
            _count(n, "a seed or fold") for n in _list(content.get("folds", content.get("seeds", [0])), "seeds")
        ),
        by_fold="folds" in content,
        device=_one_of(content.get("device", "cuda"), ("cuda", "cpu", "mps"), "device"),
        recipe=_recipe(content.get("recipe", {}), "the study"),
        slurm=_mapping(content.get("slurm", {}), "slurm"),
        source=content,
    )
    _check(study)
    return study


def _check(study: Study) -> None:
    for what, values in {
        "arm": [arm.name for arm in study.arms],
        "task": [task.name for task in study.tasks],
        "budget": list(study.budgets),
        "seed": list(study.seeds),
    }.items():
        if doubled := sorted({str(value) for value in values if values.count(value) > 1}):
            raise DescriptionError(f"named twice as {what}: {', '.join(doubled)}")
    plans = Counter(f"{task.name}-{arm.name}" for task in study.tasks for arm in study.arms)
    if same := [name for name, times in plans.items() if times > 1]:
        raise DescriptionError(
            f"a task's name and an arm's joined by - make the same plans twice: {', '.join(same)}; rename one of them"
        )
    baseline = [arm for arm in study.arms if arm.name == BASELINE]
    if not baseline or baseline[0].start != "scratch" or baseline[0].tasks or baseline[0].budgets:
        raise DescriptionError(
            f"one arm is the baseline of all comparisons, on every task and budget: {{name: {BASELINE}, "
            f"start: scratch}}; the arms are {', '.join(f'{arm.name} ({arm.start})' for arm in study.arms)}"
        )
    arms, tasks = {arm.name: arm for arm in study.arms}, {task.name for task in study.tasks}
    for arm in study.arms:
        if unknown := sorted(set(arm.tasks) - tasks):
            raise DescriptionError(f"arm {arm.name} names tasks that are not there: {', '.join(unknown)}")
        if unknown := [str(budget) for budget in arm.budgets if budget not in study.budgets]:
            raise DescriptionError(
                f"arm {arm.name} names budgets that the study does not have: {', '.join(unknown)}; it has "
                f"{', '.join(map(str, study.budgets))}"
            )
        pretrained = [other.name for other in study.arms if other.start not in ("scratch", "default")]
        if arm.like and arm.like not in pretrained:
            raise DescriptionError(
                f"arm {arm.name} is to be like {arm.like}, which has no pretrained encoder; with one: {pretrained}"
            )
        first = [name for name in pretrained if arms[name].after is None]
        if arm.after and arm.after not in first:
            raise DescriptionError(
                f"arm {arm.name} is pretrained after {arm.after}, which has no encoder before it; with one: {first}"
            )


def _arm(entry: Any, beside: Path) -> Arm:
    entry = dict(_mapping(entry, "an arm"))
    name = _name(entry.get("name"), "an arm's name")
    start = _one_of(entry.get("start"), STARTS, f"arm {name}: start")
    needed, may = NEEDS[start]
    known = ("name", "start", *needed, *may, "tasks", "budgets", "modality", "recipe")
    _demand_known(entry, known, f"arm {name} ({start})")
    if absent := [key for key in needed if not entry.get(key)]:
        raise DescriptionError(f"arm {name} ({start}) must say {' and '.join(absent)}")
    if start == "pretrain" and not (entry.get("scans") or entry.get("datasets")):
        raise DescriptionError(f"arm {name} must say on what to pretrain: scans (folders) or datasets (nnU-Net's)")
    convert: dict[str, Callable] = {
        "checkpoint": lambda value: _path(value, beside),
        "weights": lambda value: _path(value, beside),
        "scans": lambda value: tuple(_path(one, beside) for one in _list(value, "scans")),
        "datasets": lambda value: tuple(map(str, _list(value, "datasets"))),
        "dataset": str,
        "tasks": lambda value: tuple(_list(value, "tasks")),
        "budgets": lambda value: tuple(_budget(one) for one in _list(value, f"arm {name}: budgets")),
        "options": lambda value: dict(_mapping(value, f"arm {name}: options")),
        "recipe": lambda value: _recipe(value, f"arm {name}"),
    }
    return Arm(**{key: convert.get(key, lambda value: value)(value) for key, value in entry.items()})


def _task(entry: Any) -> Task:
    entry = dict(_mapping(entry, "a task"))
    name = _name(entry.get("name"), "a task's name")
    _demand_known(entry, [f.name for f in fields(Task)], f"task {name}")
    if "dataset" not in entry:
        raise DescriptionError(f"task {name} must say which nnU-Net dataset it is: dataset: 501")
    entry["dataset"] = str(entry["dataset"])
    if not isinstance(plans := entry.get("plans", BASE), str) or not PLANS.fullmatch(plans):
        raise DescriptionError(f"task {name}: plans is the name of plans of the dataset, such as {BASE}; got {plans!r}")
    if "subject" in entry:
        try:
            re.compile(entry["subject"])
        except re.error as error:
            raise DescriptionError(f"task {name}: subject is no regular expression: {error}") from None
    if "tolerance" in entry:
        entry["tolerance"] = _positive(entry["tolerance"], f"task {name}: tolerance (mm)")
    entry["fold"] = _count(entry.get("fold", 0), f"task {name}: fold")
    entry["recipe"] = _recipe(entry.get("recipe", {}), f"task {name}")
    return Task(**entry)


def _recipe(entry: Any, whose: str) -> dict:
    entry = _mapping(entry or {}, f"{whose}: recipe")
    _demand_known(entry, RECIPE, f"{whose}: recipe")
    return dict(entry)


def _mapping(entry: Any, what: str) -> Mapping:
    if not isinstance(entry, Mapping):
        raise DescriptionError(f"{what} must be a mapping of names to values, got {entry!r}")
    return entry


def _list(entry: Any, what: str) -> list:
    if not isinstance(entry, list) or not entry:
        raise DescriptionError(f"{what} must be a list with at least one entry, got {entry!r}")
    return entry


def _demand_known(entry: Mapping, known: Any, what: str) -> None:
    if unknown := sorted(set(map(str, entry)) - set(known)):
        raise DescriptionError(f"{what}: unknown {', '.join(unknown)}; known: {', '.join(known)}")


def _name(entry: Any, what: str) -> str:
    if not isinstance(entry, str) or not NAME.fullmatch(entry):
        raise DescriptionError(f"{what} is made of letters, digits and single - and _, got {entry!r}")
    return entry


def _one_of(entry: Any, allowed: tuple[str, ...], what: str) -> str:
    if entry not in allowed:
        raise DescriptionError(f"{what} must be one of {', '.join(allowed)}; got {entry!r}")
    return entry


def _count(entry: Any, what: str) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
        raise DescriptionError(f"{what} is a whole number from 0, got {entry!r}")
    return entry


def _positive(entry: Any, what: str) -> float:
    try:  # YAML reads 1e0 as a word
        number = float(entry)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise DescriptionError(f"{what} is a positive number, got {entry!r}")
    return number


def _budget(entry: Any) -> Budget:
    return ALL if entry == ALL else _count(entry, f"a budget (a number of cases, or {ALL})") or _no_cases()


def _no_cases() -> int:
    raise DescriptionError("a budget of 0 cases trains nothing")


def _path(entry: Any, beside: Path) -> Path:
    """Relative paths are relative to the description."""
    return (beside / Path(str(entry)).expanduser()).resolve()


def settings(part: Arm | Task) -> dict:
    """What an arm or a task says, JSON-able, its defaults left out: for fingerprints."""
    said = asdict(part)
    defaults = {f.name: f.default if f.default is not MISSING else {} for f in fields(part)}
    return {key: value if isinstance(value, (int, float, dict)) else str(value)
            for key, value in said.items() if value != defaults.get(key)}  # fmt: skip
