"""The parts of a description: an arm and a task, each read strictly from its entry in the YAML.

A field is an `option` (nnssl.options): its name is the key, and its help, default, type and reader
(nnssl.study.design.values) are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from nnssl.options import option, options_of
from nnssl.recipe import Recipe
from nnssl.study.design import values
from nnssl.study.design.values import DescriptionError, Place, named_as
from nnssl.study.rows import BASELINE, Budget
from nnssl.types import BASE

ALL = "all"
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


def recipe_of(entry: object, at: Place) -> dict:
    recipe = values.a_dict(entry, at)
    values.require_known(recipe, RECIPE, at)
    if recipe.get("trainer") is not None:
        values.file_name(recipe["trainer"], f"{at}: trainer is a class, such as SwinSSLTrainer")
    return recipe


def merged(*recipes: Mapping) -> dict:
    """The later one counts; a value left empty (null) overrides none."""
    both: dict = {}
    for recipe in recipes:
        both |= {
            key: value for key, value in recipe.items() if value is not None or key not in both
        }
    return both


def budget_of(entry: object, at: Place) -> Budget:
    if entry == ALL:
        return ALL
    budget = values.count(entry, at.inside(f"a budget (a number of cases, or {ALL})"))
    if not budget:
        raise DescriptionError(f"{at}: a budget must have at least 1 case, got 0")
    return budget


def millimetres(entry: object, at: Place) -> float:
    return values.positive(entry, at.named(f"{at} (mm)"))


@dataclass(frozen=True)
class Arm:
    """One start of the training. `NEEDS` says which fields belong to which start."""

    name: str = option(help="of the runs and their files", read=values.name)
    start: str = option(help="how the training starts", choices=STARTS)
    checkpoint: Path | None = option(
        None, "a checkpoint_final.pth, an address or a name", read=values.weights
    )
    method: str | None = option(None, "of nnssl_pretrain")
    scans: tuple[Path, ...] = option((), "folders, for nnssl_pretrain -i")
    datasets: tuple[str, ...] = option(
        (), "nnU-Net raw datasets, for nnssl_pretrain -d", read=values.dataset
    )
    encoder: str | None = option(None, "a preset")
    options: Mapping = option(factory=dict, help="more flags of nnssl_pretrain or nnssl_convert")
    weights: Path | None = option(None, "a local file, for nnssl_convert", read=values.weights)
    dataset: str | None = option(
        None, "labelled, for the supervised pretraining", read=values.dataset
    )
    configuration: str | None = option(
        None, "of that dataset", read=named_as("is nnU-Net's, such as 3d_fullres")
    )
    plans: str | None = option(
        None,
        "another network's, from which its patch, batch and data come",
        read=named_as("is the name of plans of the dataset, such as nnUNetResEncUNetLPlans"),
    )
    trainer: str | None = option(
        None,
        "another network's, a class",
        read=named_as("is a class, such as DefaultPrimusMTrainer"),
    )
    train: Path | None = option(
        None, "the program of another environment that trains it; left out: trained by hand"
    )
    after: str | None = option(None, "the arm whose encoder the pretraining starts from")
    like: str | None = option(None, "the arm whose encoder and intensities the random start has")
    tasks: tuple[str, ...] = option((), "none named: all")
    budgets: tuple[Budget, ...] = option((), "none named: all", read=budget_of)
    modality: str | None = option(None, "of the pretraining, for the report")
    recipe: Mapping = option(factory=dict, help="over the task's and the study's", read=recipe_of)

    @property
    def is_baseline(self) -> bool:
        """Whether all others can be compared with it, on every task and budget."""
        is_scratch = self.name == BASELINE and self.start == "scratch"
        return is_scratch and not (self.tasks or self.budgets)

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from an encoder of ours."""
        return self.start not in (BASELINE, *OTHERS)


@dataclass(frozen=True)
class Task:
    """One labelled nnU-Net dataset."""

    name: str = option(help="of the runs and their files", read=values.name)
    dataset: str = option(help="which nnU-Net dataset it is, such as 501", read=values.dataset)
    configuration: str = option(
        "3d_fullres",
        "of that dataset",
        read=named_as("is the name of configuration of the dataset, such as 3d_fullres"),
    )
    plans: str = option(
        BASE,
        "nnU-Net's, from which spacing and data come",
        read=named_as(f"is the name of plans of the dataset, such as {BASE}"),
    )
    fold: int = option(0, "whose validation cases are every run's")
    validate: str = option(
        FOLD,
        f"{FOLD}: on those; {REST}: a seed's runs on all cases that none of them trains on",
        choices=(FOLD, REST),
    )
    modality: str | None = option(None, "CT, MR, ...: for the report")
    subject: str | None = option(
        None,
        "a regular expression: what it finds in a case's name is the subject",
        read=values.expression,
    )
    tolerance: float = option(2.0, "mm, of the surface Dice", read=millimetres)
    recipe: Mapping = option(factory=dict, help="over the study's", read=recipe_of)


ARM = {each.name: each for each in options_of(Arm)}
TASK = {each.name: each for each in options_of(Task)}
OF_EVERY_ARM = ("name", "start", "tasks", "budgets", "modality", "recipe")


def arm_of(given: object, at: Place) -> Arm:
    entry = values.mapping(given, at.named("an arm"))
    at = at.named(f"arm {_name(entry, at.named('an arm'))}")
    start = values.one_of(entry.get("start"), STARTS, at.inside("start"))
    _check_keys(entry, start, at.named(f"{at} ({start})"))
    return Arm(**values.fields(entry, ARM, at))


def _name(entry: Mapping, at: Place) -> str:
    return values.name(entry.get("name"), at.named(f"{at}'s name"))


def _check_keys(entry: Mapping, start: str, at: Place) -> None:
    """Check that an arm has the fields that its start needs, and no others."""
    needed, optional = NEEDS[start]
    allowed = {*OF_EVERY_ARM, *needed, *optional}
    values.require_known(entry, [key for key in ARM if key in allowed], at)
    values.require_said(entry, [ARM[key] for key in needed], at)
    if start == "pretrain":
        _require_scans(entry, at)
    if entry.get("like") and entry.get("encoder"):
        raise DescriptionError(
            f"{at}: like and encoder both say which encoder it has; leave one of them out"
        )


def _require_scans(entry: Mapping, at: Place) -> None:
    if not (entry.get("scans") or entry.get("datasets")):
        raise DescriptionError(
            f"{at} has no data to pretrain on: give scans (folders) or datasets (nnU-Net's)"
        )


def task_of(given: object, at: Place) -> Task:
    entry = values.mapping(given, at.named("a task"))
    at = at.named(f"task {_name(entry, at.named('a task'))}")
    values.require_known(entry, TASK, at)
    values.require_said(entry, [TASK["dataset"]], at)
    task = Task(**values.fields(entry, TASK, at))
    _check_validation(task, at)
    return task


def _check_validation(task: Task, at: Place) -> None:
    if task.validate == REST and task.fold:
        raise DescriptionError(f"{at}: validate: {REST} replaces a fold; leave one of them out")


def settings(part: Arm | Task) -> dict:
    """The fields of an arm or a task, JSON-able, without defaults: for fingerprints."""
    said = asdict(part)
    defaults = {f.name: f.default if f.default is not MISSING else {} for f in fields(part)}
    return {key: value if isinstance(value, (int, float, dict)) else str(value)
            for key, value in said.items() if value != defaults.get(key)}  # fmt: skip
