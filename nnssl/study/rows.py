"""The rows of a study's `results.jsonl`: a record per kind, with the file's names, in its order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, TypeVar

Budget = int | str  # a number of labelled cases, or "all"
BASELINE = "scratch"  # the arm that all others are compared with
PRETRAINED = "pretrained"  # in place of a budget: the encoder before its fine-tuning
R = TypeVar("R", bound="Row")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One line of the file. Of rows with equal `key` the last one counts.

    KIND:  the row's `kind` in the file.
    KEY:   the fields that tell it from others of its kind.
    """

    KIND: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]

    @property
    def key(self) -> tuple[str | int, ...]:
        return (self.KIND, *(getattr(self, name) for name in self.KEY))

    def to_json(self) -> dict:
        return {"kind": self.KIND, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def required(cls) -> list[str]:
        """Fields that every version of this package wrote."""
        return [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]

    @classmethod
    def lacking(cls, content: Mapping) -> list[str]:
        """The required fields that are not there."""
        return [name for name in cls.required() if name not in content]

    @classmethod
    def from_json(cls: type[R], content: Mapping) -> R:
        """Fields of other versions are left out."""
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})


@dataclass(frozen=True, kw_only=True)
class StudyRow(Row):
    """What was compared, and by which versions on which machine it was begun."""

    KIND, KEY = "study", ()
    name: str | None = None
    description: dict = field(default_factory=dict)  # the content of the YAML
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str | int | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRow(Row):
    """One training. `cases`: it was trained with; `state`: done, failed (`reason`) or missing;
    `iterations`: of an epoch.
    """

    KIND, KEY = "run", ("run",)
    run: str
    task: str
    arm: str
    budget: Budget
    cases: int | None = None
    seed: int
    configuration: str | None = None
    trainer: str | None = None
    plans: str | None = None
    state: str
    hours: float | None = None
    epochs: int | None = None
    iterations: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochRow(Row):
    """One epoch of a run; `dice` is nnU-Net's mean pseudo Dice. None where it is not finite."""

    KIND, KEY = "epoch", ("run", "epoch")
    run: str
    epoch: int
    dice: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaseRow(Row):
    """Scores of one label in one validation case; None where undefined. hd95: mm.

    `subject` is left out of the file where it is the case.
    """

    KIND, KEY = "case", ("run", "case", "label")
    run: str
    case: str
    label: str
    dice: float | None = None
    surface_dice: float | None = None
    hd95: float | None = None
    subject: str | None = None

    def to_json(self) -> dict:
        content = super().to_json()
        if self.subject is None:
            del content["subject"]
        return content


@dataclass(frozen=True, kw_only=True)
class CkaRow(Row):
    """CKA of two encoders, `first` and `second`: values [rows columns], by the names of layers.

    `trainings`: a fingerprint of each fine-tuned one's results; None in earlier versions.
    """

    KIND, KEY = "cka", ("task", "first", "second", "seed")
    task: str
    first: str
    second: str
    seed: int
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    volumes: int = 0  # crops
    trainings: list[str] | None = None

    @property
    def encoders(self) -> list[str]:
        return [self.first, self.second]


@dataclass(frozen=True, kw_only=True)
class AttentionRow(Row):
    """Mean attention distance of one head, in mm, and that of even attention in its window.

    `trainings` as of CKA; `volumes`: crops, 0 in earlier versions.
    """

    KIND, KEY = "attention", ("task", "arm", "budget", "seed", "layer", "head")
    task: str
    arm: str
    budget: Budget
    seed: int
    layer: str
    head: int
    mm: float
    uniform_mm: float | None = None
    volumes: int = 0
    trainings: list[str] | None = None

    @property
    def encoders(self) -> list[str]:
        return [f"{self.arm} {self.budget}"]


KINDS: dict[str, type[Row]] = {
    kind.KIND: kind for kind in (StudyRow, RunRow, CaseRow, EpochRow, CkaRow, AttentionRow)
}


def by_size(budget: Budget) -> tuple[int, int, str]:
    """Sorts budgets: numbers, then words."""
    return (0, budget, "") if isinstance(budget, int) else (1, 0, str(budget))


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """By `key`, groups and their items in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
