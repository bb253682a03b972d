"""The description of a study: study.yaml, read strictly into frozen dataclasses.

    arms  x  tasks  x  budgets  x  seeds (or folds)   =   the runs

An arm is a start of the training; the arm `scratch` is what all others are compared with. Each run
has a name, `<task>__<arm>__<budget>__<seed>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnssl.network.planned import BASE
from nnssl.study import values
from nnssl.study.values import DescriptionError

Budget = int | str  # a number of cases, or ALL

ALL = "all"
BASELINE = "scratch"
MOST_RUNS = 100_000
STARTS = ("scratch", "checkpoint", "pretrain", "default", "imagenet", "supervised")
NEEDS = {  # what an arm must say beside its name and start, and what else it may say
    "scratch": ((), ("like", "encoder")),
    "checkpoint": (("checkpoint",), ()),
    "pretrain": (("method",), ("scans", "datasets", "encoder", "after", "options")),
    "default": ((), ()),
    "imagenet": (("weights",), ("options",)),
    "supervised": (("dataset", "configuration"), ("encoder",)),
}
RECIPE = (  # of `nnssl_plan`, as its flags are called, and the trainer
    "trainer", "decoder", "patch", "batch_size", "epochs", "iterations", "val_iterations", "foreground", "mirror", "lr",
    "head_lr", "encoder_lr", "layer_decay", "warmup_iterations", "warmup_epochs", "unfreeze_every", "weight_decay",
    "schedule", "drop_path", "ema",
)  # fmt: skip


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
    # further flags of nnssl_pretrain or nnssl_convert
    options: Mapping[str, Any] = field(default_factory=dict)
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
    # a regular expression: what it finds in a case's name is the subject
    subject: str | None = None
    tolerance: float = 2.0  # mm, of the surface Dice
    recipe: Mapping[str, Any] = field(default_factory=dict)  # over the study's


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


def _study(content: Any, path: Path) -> Study:
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
    content = values.mapping(content, "the description")
    values.demand_known(content, known, "the description")
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
        arms=tuple(_arm(entry, path.parent) for entry in values.a_list(content["arms"], "arms")),
        tasks=tuple(_task(entry) for entry in values.a_list(content["tasks"], "tasks")),
        budgets=tuple(
            _budget(entry) for entry in values.a_list(content.get("budgets", [ALL]), "budgets")
        ),
        seeds=tuple(
            values.count(n, "a seed or fold")
            for n in values.a_list(content.get("folds", content.get("seeds", [0])), "seeds")
        ),
        by_fold="folds" in content,
        device=values.one_of(content.get("device", "cuda"), ("cuda", "cpu", "mps"), "device"),
        recipe=_recipe(content.get("recipe", {}), "the study"),
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
        values.demand_once(what, named)
    count = len(study.arms) * len(study.tasks) * len(study.budgets) * len(study.seeds)
    if count > MOST_RUNS:
        raise DescriptionError(
            f"{len(study.arms)} arms x {len(study.tasks)} tasks x {len(study.budgets)} budgets x {len(study.seeds)} "
            f"seeds are {count} runs; a study has {MOST_RUNS} at most"
        )
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
            raise DescriptionError(
                f"arm {arm.name} names tasks that are not there: {', '.join(unknown)}"
            )
        if unknown := [str(budget) for budget in arm.budgets if budget not in study.budgets]:
            raise DescriptionError(
                f"arm {arm.name} names budgets that the study does not have: {', '.join(unknown)}; it has "
                f"{', '.join(map(str, study.budgets))}"
            )
        pretrained = [
            other.name for other in study.arms if other.start not in ("scratch", "default")
        ]
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
    entry = dict(values.mapping(entry, "an arm"))
    name = values.name(entry.get("name"), "an arm's name")
    start = values.one_of(entry.get("start"), STARTS, f"arm {name}: start")
    needed, may = NEEDS[start]
    known = ("name", "start", *needed, *may, "tasks", "budgets", "modality", "recipe")
    values.demand_known(entry, known, f"arm {name} ({start})")
    if absent := [key for key in needed if not entry.get(key)]:
        raise DescriptionError(f"arm {name} ({start}) must say {' and '.join(absent)}")
    if start == "pretrain" and not (entry.get("scans") or entry.get("datasets")):
        raise DescriptionError(
            f"arm {name} must say on what to pretrain: scans (folders) or datasets (nnU-Net's)"
        )
    what = f"arm {name}: "
    convert: dict[str, Callable] = {
        "checkpoint": lambda value: values.weights(value, beside, f"{what}checkpoint"),
        "weights": lambda value: values.weights(value, beside, f"{what}weights"),
        "scans": lambda value: tuple(
            values.path(one, beside, f"{what}scans") for one in values.a_list(value, f"{what}scans")
        ),
        "datasets": lambda value: tuple(
            values.dataset(one, f"{what}datasets")
            for one in values.a_list(value, f"{what}datasets")
        ),
        "dataset": lambda value: values.dataset(value, f"{what}dataset"),
        "tasks": lambda value: tuple(
            values.text(one, f"{what}tasks") for one in values.a_list(value, f"{what}tasks")
        ),
        "budgets": lambda value: tuple(
            _budget(one) for one in values.a_list(value, f"{what}budgets")
        ),
        "options": lambda value: dict(values.mapping(value, f"{what}options")),
        "recipe": lambda value: _recipe(value, f"arm {name}"),
        "configuration": lambda value: values.file_name(
            value, f"{what}configuration is nnU-Net's, such as 3d_fullres"
        ),
    }
    return Arm(
        **{key: convert.get(key, lambda value, key=key: values.text(value, what + key))(value)
           for key, value in entry.items() if value is not None}
    )  # fmt: skip


def _task(entry: Any) -> Task:
    entry = dict(values.mapping(entry, "a task"))
    name = values.name(entry.get("name"), "a task's name")
    values.demand_known(entry, [f.name for f in fields(Task)], f"task {name}")
    if "dataset" not in entry:
        raise DescriptionError(f"task {name} must say which nnU-Net dataset it is: dataset: 501")
    what = f"task {name}: "
    entry["dataset"] = values.dataset(entry["dataset"], f"{what}dataset")
    for key, example in (("plans", BASE), ("configuration", "3d_fullres")):
        if key in entry:
            rule = f"{what}{key} is the name of {key} of the dataset, such as {example}"
            entry[key] = values.file_name(entry[key], rule)
    if entry.get("subject") is not None:
        values.expression(entry["subject"], f"{what}subject")
    if entry.get("modality") is not None:
        values.text(entry["modality"], f"{what}modality")
    if "tolerance" in entry:
        entry["tolerance"] = values.positive(entry["tolerance"], f"{what}tolerance (mm)")
    entry["fold"] = values.count(entry.get("fold", 0), f"{what}fold")
    entry["recipe"] = _recipe(entry.get("recipe", {}), f"task {name}")
    return Task(**entry)


def _recipe(entry: Any, whose: str) -> dict:
    entry = values.mapping(entry or {}, f"{whose}: recipe")
    values.demand_known(entry, RECIPE, f"{whose}: recipe")
    if "trainer" in entry:
        values.file_name(
            entry["trainer"], f"{whose}: recipe: trainer is a class, such as SwinSSLTrainer"
        )
    return dict(entry)


def _budget(entry: Any) -> Budget:
    return (
        ALL
        if entry == ALL
        else values.count(entry, f"a budget (a number of cases, or {ALL})") or _no_cases()
    )


def _no_cases() -> int:
    raise DescriptionError("a budget of 0 cases trains nothing")


def settings(part: Arm | Task) -> dict:
    """What an arm or a task says, JSON-able, its defaults left out: for fingerprints."""
    said = asdict(part)
    defaults = {f.name: f.default if f.default is not MISSING else {} for f in fields(part)}
    return {key: value if isinstance(value, (int, float, dict)) else str(value)
            for key, value in said.items() if value != defaults.get(key)}  # fmt: skip
