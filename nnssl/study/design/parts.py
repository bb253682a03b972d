"""The parts of a description: an arm and a task, each read strictly from its entry in the YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from nnssl.options import options_of
from nnssl.recipe import Recipe
from nnssl.study.design import values
from nnssl.study.design.values import DescriptionError
from nnssl.types import BASE

Budget = int | str  # a number of cases, or ALL

ALL = "all"
BASELINE = "scratch"
FOLD, REST = "fold", "rest"  # which cases a task validates on
STARTS = ("scratch", "checkpoint", "pretrain", "default", "imagenet", "supervised", "elsewhere")
OTHERS = ("default", "elsewhere")  # of which start another network than ours
NEEDS = {  # what an arm must say beside its name and start, and what else it may say
    "scratch": ((), ("like", "encoder")),
    "checkpoint": (("checkpoint",), ()),
    "pretrain": (("method",), ("scans", "datasets", "encoder", "after", "options")),
    "default": ((), ("plans", "trainer")),
    "elsewhere": (("trainer", "plans"), ("train",)),
    "imagenet": (("weights",), ("options",)),
    "supervised": (("dataset", "configuration"), ("encoder",)),
}
NETWORK = ("decoder", "patch", "batch_size")  # of `nnssl_plan`, and as well of a recipe here
RECIPE = ("trainer", *NETWORK, *(each.key for each in options_of(Recipe) if each.flag))


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
    options: Mapping = field(default_factory=dict)
    weights: Path | None = None  # a local file, for nnssl_convert
    dataset: str | None = None  # labelled, for the supervised pretraining
    configuration: str | None = None  # of that dataset
    plans: str | None = None  # another network's, from which its patch, batch and data come
    trainer: str | None = None  # another network's, a class
    # the program of another environment that trains it; None: somebody trains by hand
    train: Path | None = None
    after: str | None = None  # the arm whose encoder the pretraining starts from
    like: str | None = None  # the arm whose encoder and intensities the random start has
    tasks: tuple[str, ...] = ()  # none named: all
    budgets: tuple[Budget, ...] = ()  # none named: all
    modality: str | None = None  # of the pretraining, for the report
    recipe: Mapping = field(default_factory=dict)  # over the task's and the study's


@dataclass(frozen=True)
class Task:
    """One labelled nnU-Net dataset."""

    name: str
    dataset: str  # ID or name
    configuration: str = "3d_fullres"
    plans: str = BASE  # nnU-Net's, from which spacing and data come
    fold: int = 0  # whose validation cases are every run's
    validate: str = FOLD  # or REST: a seed's runs on all cases that none of them trains on
    modality: str | None = None  # CT, MR, ...: for the report
    # a regular expression: what it finds in a case's name is the subject
    subject: str | None = None
    tolerance: float = 2.0  # mm, of the surface Dice
    recipe: Mapping = field(default_factory=dict)  # over the study's


def arm_of(given: object, beside: Path) -> Arm:
    entry = dict(values.mapping(given, "an arm"))
    name = values.name(entry.get("name"), "an arm's name")
    start = values.one_of(entry.get("start"), STARTS, f"arm {name}: start")
    needed, may = NEEDS[start]
    known = ("name", "start", *needed, *may, "tasks", "budgets", "modality", "recipe")
    values.require_known(entry, known, f"arm {name} ({start})")
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
        "train": lambda value: values.path(value, beside, f"{what}train"),
        "plans": lambda value: values.file_name(
            value,
            f"{what}plans is the name of plans of the dataset, such as nnUNetResEncUNetLPlans",
        ),
        "trainer": lambda value: values.file_name(
            value, f"{what}trainer is a class, such as DefaultPrimusMTrainer"
        ),
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
            budget_of(one) for one in values.a_list(value, f"{what}budgets")
        ),
        "options": lambda value: dict(values.mapping(value, f"{what}options")),
        "recipe": lambda value: recipe_of(value, f"arm {name}"),
        "configuration": lambda value: values.file_name(
            value, f"{what}configuration is nnU-Net's, such as 3d_fullres"
        ),
    }
    return Arm(
        **{key: convert.get(key, lambda value, key=key: values.text(value, what + key))(value)
           for key, value in entry.items() if value is not None}
    )  # fmt: skip


def task_of(given: object) -> Task:
    entry = dict(values.mapping(given, "a task"))
    name = values.name(entry.get("name"), "a task's name")
    values.require_known(entry, [f.name for f in fields(Task)], f"task {name}")
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
    validate = values.one_of(entry.get("validate", FOLD), (FOLD, REST), f"{what}validate")
    if validate == REST and entry["fold"]:
        raise DescriptionError(
            f"{what}validate: {REST} is instead of a fold; leave out one of them"
        )
    entry["recipe"] = recipe_of(entry.get("recipe", {}), f"task {name}")
    return Task(**entry)


def recipe_of(given: object, whose: str) -> dict:
    entry = values.mapping(given or {}, f"{whose}: recipe")
    values.require_known(entry, RECIPE, f"{whose}: recipe")
    if "trainer" in entry:
        values.file_name(
            entry["trainer"], f"{whose}: recipe: trainer is a class, such as SwinSSLTrainer"
        )
    return dict(entry)


def budget_of(entry: object) -> Budget:
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
