"""Compare an existing plan with the scans found now and with the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnssl.data.plan import Case, Plan
from nnssl.data.scans import Found
from nnssl.data.survey_lines import has_other_contents
from nnssl.data.survey_report import ScanReport
from nnssl.types import Shape, Spacing

# spacing, crop and HU range where they are given by name
Overrides = tuple["Spacing | None", "Shape | None", "tuple[float, float] | None"]


@dataclass(frozen=True)
class PlanComparison:
    """The scans of a plan `before`, and those that are there `now`, by path and series.

    stored: from which state of its source each case was stored, by its id (`source_states`).
    folder: of the collection, where the survey's lines are kept.
    """

    before: dict[tuple[str, str], Case]
    now: dict[tuple[str, str], ScanReport]
    stored: Mapping[str, list]
    folder: Path

    @classmethod
    def of(
        cls,
        plan: Plan,
        lines: Sequence[ScanReport],
        moved: Mapping[str, str],
        folder: Path,
        stored: Mapping[str, list] | None = None,
    ) -> PlanComparison:
        """With those of the survey's `lines` that are kept; `moved`: where a source of the plan is
        now.
        """
        before = {(moved.get(case.source, case.source), case.series): case for case in plan.cases}
        now = {(line.path, line.series): line for line in lines if line.kept}
        return cls(before, now, stored or {}, folder)

    @cached_property
    def new(self) -> list[ScanReport]:
        return [self.now[key] for key in sorted(self.now.keys() - self.before.keys())]

    @cached_property
    def both(self) -> set[tuple[str, str]]:
        return self.now.keys() & self.before.keys()

    @property
    def gone(self) -> int:
        return len(self.before) - len(self.both)

    @property
    def changed(self) -> int:
        return sum(self._is_changed(key) for key in self.both)

    def _is_changed(self, key: tuple[str, str]) -> bool:
        now, before = self.now[key], self.before[key]
        return (now.shape, now.spacing) != (before.shape, before.spacing)

    @cached_property
    def rewritten(self) -> list[str]:
        """The ids of cases that were stored from other files of the same shape and spacing."""
        keys = sorted(key for key in self.both if not self._is_changed(key))
        return [self.before[key].id for key in keys if self._is_rewritten(key)]

    def _is_rewritten(self, key: tuple[str, str]) -> bool:
        case, state = self.before[key], list(self.now[key].state)
        if case.source != key[0]:
            return case.id in self.replaced
        return self.stored.get(case.id, state) != state

    @cached_property
    def replaced(self) -> set[str]:
        """The ids of lost cases where another scan of their name and size was found. Files
        with the time of change that the case was stored from are not compared.
        """
        return {self.before[key].id for key in self.moved if self._is_replaced(key)}

    def _is_replaced(self, key: tuple[str, str]) -> bool:
        case, now = self.before[key], self.now[key]
        if self.stored.get(case.id) == list(now.state):
            return False
        return has_other_contents(Found(case.source, case.series), now.found, self.folder)

    @property
    def moved(self) -> list[tuple[str, str]]:
        """Where the scans are now that lie elsewhere than in the plan."""
        return [key for key in self.both if self.before[key].source != key[0]]

    @property
    def states(self) -> dict[str, list]:
        """{case id: state of its source now}."""
        return {self.before[key].id: list(self.now[key].state) for key in self.both}

    def describe(self) -> str:
        """In words; empty without a difference."""
        counts = {
            "new": len(self.new),
            "gone (their preprocessed files stay in use)": self.gone,
            "changed (their preprocessed files stay in use)": self.changed,
            "rewritten, or with another time of change": len(self.rewritten),
        }
        return ", ".join(f"{number} {what}" for what, number in counts.items() if number)

    def cure(self, update: bool, check: bool) -> str:
        """What options would do that are not given; empty where they would do nothing."""
        cures = {
            "--update adds the new ones": self.new and not update,
            "--update --check stores the rewritten ones again": self.rewritten and not check,
        }
        return "".join(f"; {words}" for words, helps in cures.items() if helps)


def other_values(old: Plan, overrides: Overrides) -> Iterator[str]:
    """Spacing, crop and HU range that are not those of the plan. A range that is given is that of a
    linear map.
    """
    for (word, planned), value in zip(_overridable_values(old).items(), overrides, strict=True):
        if value is not None and planned != tuple(map(float, value)):
            yield f"{word} {planned}, got {tuple(value)}"
    if overrides[2] is not None and old.hu is not None and old.hu.interior:
        yield f"a piecewise linear HU map, got the linear one of {tuple(overrides[2])}"


def _overridable_values(plan: Plan) -> dict:
    """What can be overridden, by its name, in the order of Overrides."""
    hu_range = plan.hu and (plan.hu.low, plan.hu.high)
    return {"spacing": plan.spacing, "crop": plan.crop, "HU range": hu_range}


def other_kind(old: Plan, in_hu: bool, pattern: tuple[str, ...]) -> Iterator[str]:
    """Files or a modality that are not those of the plan."""
    if pattern and pattern != old.pattern:
        planned = f"--pattern {' '.join(old.pattern)}" if old.pattern else "no --pattern"
        yield f"{planned}, got {' '.join(pattern)} (--update changes it)"
    if in_hu != (old.hu is not None):
        yield "scans in HU" if old.hu else "scans that are not in HU (--no-hu)"
