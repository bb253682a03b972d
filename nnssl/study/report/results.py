"""`results.jsonl`, the one file that a report is made from: rows of a study, in whatever order they
were written.

A study is killed and started again, so a row may be there twice: of rows with the same key the last
one counts. The kinds of rows and their fields are listed in documentation/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl import files

BASELINE = "scratch"
MEASURES = {"dice": "Dice", "surface_dice": "surface Dice", "hd95": "HD95 (mm)"}
SMALLER_IS_BETTER = ("hd95",)
KEYS = {
    "study": (),
    "run": ("run",),
    "case": ("run", "case", "label"),
    "epoch": ("run", "epoch"),
    "cka": ("task", "first", "second", "seed"),
    "attention": ("task", "arm", "budget", "seed", "layer", "head"),
}
# beside the keys
NEEDED = {"run": ("task", "arm", "budget", "seed", "state"), "case": (), "epoch": ()}
Budget = int | str  # a number of labelled cases, or "all"


@dataclass(frozen=True, order=True)
class Group:
    """The runs that differ by their seed only. `order` of budgets: by number, "all" last."""

    task: str
    arm: str
    budget: Budget


class ResultsError(ValueError):
    """The file is not a study's results; the message says which line and what it lacks."""


class Results:
    """The rows of a study, sorted, each once.

    tasks, arms:  names in the description's order, then in that of the alphabet.
    budgets:      by number, "all" last.
    runs:         every run's row by its name.
    done:         group to its finished runs' rows, by seed.
    """

    def __init__(self, rows: Iterable[dict]) -> None:
        kept = {kind: {} for kind in KEYS}
        for number, row in enumerate(rows, start=1):
            kept[_kind(row, number)][_key(row, number)] = row
        self.study: dict = kept["study"].get((), {})
        self.description: dict = self.study.get("description") or {}
        self.runs: dict[str, dict] = {row["run"]: row for row in _ordered(kept["run"])}
        self.tasks = self._names("tasks", "task")
        self.arms = self._names("arms", "arm")
        self.budgets: list[Budget] = sorted(
            {row["budget"] for row in self.runs.values()}, key=by_size
        )
        self.done: dict[Group, list[dict]] = {}
        for row in sorted(self.runs.values(), key=self._place):
            if row["state"] == "done":
                self.done.setdefault(Group(row["task"], row["arm"], row["budget"]), []).append(row)
        self._cases = _by_run(kept["case"])
        self._epochs = _by_run(kept["epoch"])
        self._scores: dict[tuple, Scores] = {}
        self.cka = _ordered(kept["cka"])
        self.attention = _ordered(kept["attention"])

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Raises FileNotFoundError, or ResultsError for rows that are no study's."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no results at {path}; a study writes them: nnssl_study run study.yaml"
            )
        return cls(files.read_json_lines(path))

    def labels(self, task: str) -> list[str]:
        runs = [row["run"] for row in self.runs.values() if row["task"] == task]
        return sorted({str(row["label"]) for run in runs for row in self._cases.get(run, ())})

    def scores(self, group: Group, measure: str, label: str | None = None) -> Scores:
        """A group's measure by seed and case; the mean over a case's labels where `label` is
        None.
        """
        key = (group, measure, label)
        if key not in self._scores:
            self._scores[key] = self._table(group, measure, label)
        return self._scores[key]

    def _table(self, group: Group, measure: str, label: str | None) -> Scores:
        runs = self.done.get(group, [])
        cells: dict[tuple[int, str], list[float]] = {}
        subjects: dict[str, str] = {}
        for index, run in enumerate(runs):
            for row in self._cases.get(run["run"], ()):
                case = str(row["case"])
                subjects[case] = str(row.get("subject", case))
                if label in (None, str(row["label"])) and row.get(measure) is not None:
                    cells.setdefault((index, case), []).append(row[measure])
        cases = sorted(subjects)
        values = np.full((len(runs), len(cases)), np.nan)
        places = {case: place for place, case in enumerate(cases)}
        for (index, case), numbers in cells.items():
            values[index, places[case]] = np.mean(numbers)
        return Scores(
            values, [run["seed"] for run in runs], cases, [subjects[case] for case in cases]
        )

    def epochs(self, run: str) -> list[dict]:
        """The rows of a run's epochs, in order."""
        return self._epochs.get(run, [])

    def cases_of(self, group: Group) -> float:
        """The number of labelled cases that a group was trained with, the mean over its runs."""
        return float(np.mean([run["cases"] for run in self.done[group]]))

    def modality(self, kind: str, name: str) -> str | None:
        """Of a task, or of an arm's pretraining, as the description says; None where it says
        nothing.
        """
        return next(
            (part.get("modality") for part in self._parts(kind) if part.get("name") == name), None
        )

    def _parts(self, kind: str) -> list[dict]:
        return [part for part in self.description.get(kind) or () if isinstance(part, dict)]

    def _names(self, kind: str, field: str) -> list[str]:
        there = {row[field] for row in self.runs.values()}
        said = [part["name"] for part in self._parts(kind) if part.get("name") in there]
        return [*dict.fromkeys(said), *sorted(there - set(said))]

    def _place(self, row: dict) -> tuple:
        return (
            self.tasks.index(row["task"]),
            self.arms.index(row["arm"]),
            by_size(row["budget"]),
            row["seed"],
        )


@dataclass(frozen=True)
class Scores:
    """values: [S C], seed by case, NaN where a case has none; `subjects` says whose case it is,
    [C].
    """

    values: np.ndarray
    seeds: list[int]
    cases: list[str]
    subjects: list[str]

    @property
    def mean(self) -> float:
        """Over the cases of each seed, then over the seeds; NaN without any value."""
        with_any = ~np.isnan(self.values).all(axis=1) if self.values.size else np.zeros(0, bool)
        return (
            float(np.nanmean(self.values[with_any], axis=1).mean())
            if with_any.any()
            else float("nan")
        )

    def minus(self, other: Scores) -> Scores:
        """The differences, paired by seed and case; of the seeds and cases that both have."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        cases = [case for case in self.cases if case in other.cases]
        mine = self.values[
            np.ix_([self.seeds.index(s) for s in seeds], [self.cases.index(c) for c in cases])
        ]
        theirs = other.values[
            np.ix_([other.seeds.index(s) for s in seeds], [other.cases.index(c) for c in cases])
        ]
        return Scores(
            mine - theirs, seeds, cases, [self.subjects[self.cases.index(case)] for case in cases]
        )


def by_size(budget: Budget) -> tuple[int, int, str]:
    """Sorts budgets: numbers, then words."""
    return (0, budget, "") if isinstance(budget, int) else (1, 0, str(budget))


def _kind(row: dict, number: int) -> str:
    if not isinstance(row, dict) or row.get("kind") not in KEYS:
        got = row.get("kind") if isinstance(row, dict) else type(row).__name__
        raise ResultsError(
            f"row {number} of the results has kind {got!r}; known: {', '.join(KEYS)}"
        )
    return row["kind"]


def _key(row: dict, number: int) -> tuple:
    keys = KEYS[row["kind"]]
    words = (*keys, *NEEDED.get(row["kind"], ()))
    if missing := [name for name in words if name not in row]:
        raise ResultsError(
            f"row {number} of the results, a {row['kind']}, lacks {', '.join(missing)}"
        )
    if odd := [name for name in words if isinstance(row[name], (list, dict))]:
        raise ResultsError(
            f"row {number} of the results, a {row['kind']}, has a list or mapping as "
            f"{', '.join(odd)}"
        )
    return tuple(row[name] for name in keys)


def _ordered(rows: dict[tuple, dict]) -> list[dict]:
    return [
        rows[key] for key in sorted(rows, key=lambda key: [(isinstance(k, str), k) for k in key])
    ]


def _by_run(rows: dict[tuple, dict]) -> dict[str, list[dict]]:
    grouped: dict[str, list[dict]] = {}
    for row in _ordered(rows):
        grouped.setdefault(row["run"], []).append(row)
    return grouped
