"""`results.jsonl`, the one file that a report is made from: rows of a study, in whatever order they
were written.

A study is killed and started again, so a row may be there twice: of rows with the same key the last
one counts. The kinds of rows and their fields are listed in documentation/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from nnssl import files
from nnssl.study.report import statistics
from nnssl.study.report.pairing import paired_differences
from nnssl.study.report.row_parsing import ResultsError, parse_rows
from nnssl.study.report.statistics import Interval
from nnssl.study.rows import (
    BASELINE,
    PRETRAINED,
    AttentionRow,
    Budget,
    CaseRow,
    CkaRow,
    EpochRow,
    R,
    Row,
    RunRow,
    StudyRow,
    by_size,
    grouped,
)

MEASURES = {"dice": "Dice", "surface_dice": "surface Dice", "hd95": "HD95 (mm)"}
SMALLER_IS_BETTER = ("hd95",)


@dataclass(frozen=True, order=True)
class Group:
    """The runs that differ by their seed only."""

    task: str
    arm: str
    budget: Budget

    @classmethod
    def of(cls, row: RunRow | AttentionRow) -> Group:
        return cls(row.task, row.arm, row.budget)

    @property
    def baseline(self) -> Group:
        """What it is compared with."""
        return Group(self.task, BASELINE, self.budget)


class Results:
    """The rows of a study, sorted, each once.

    tasks, arms:  names in the description's order, then in that of the alphabet.
    budgets:      by number, "all" last.
    runs:         every run by its name.
    done:         group to its finished runs, by seed.
    """

    def __init__(self, rows: Iterable[Mapping]) -> None:
        kept = parse_rows(rows)
        self.study = next(iter(_of(StudyRow, kept)), StudyRow())
        self.runs = {row.run: row for row in _of(RunRow, kept)}
        self._epochs = grouped(_of(EpochRow, kept), lambda row: row.run)
        self._cases = _frame(_of(CaseRow, kept))
        self._pivots: dict[tuple[str, str | None], pd.DataFrame] = {}
        self._labelled: dict[Group, pd.DataFrame] = {}
        self._subjects_of: dict[Group, pd.Series] = {}
        self._scores: dict[tuple[Group, str, str | None], Scores] = {}
        self.done = self._groups()
        self.cka = [row for row in _of(CkaRow, kept) if self._counts(row)]
        self.attention = [row for row in _of(AttentionRow, kept) if self._counts(row)]

    def _counts(self, row: CkaRow | AttentionRow) -> bool:
        """Whether the runs of its networks are there and finished."""
        return all((row.task, name, row.seed) in self._networks for name in row.encoders)

    @cached_property
    def _networks(self) -> set[tuple[str, str, int]]:
        """(task, `<arm> <budget>`, seed) of the finished runs, and of the encoders before them."""
        done = [run for runs in self.done.values() for run in runs]
        return {
            (run.task, f"{run.arm} {budget}", run.seed)
            for run in done
            for budget in (run.budget, PRETRAINED)
        }

    @cached_property
    def tasks(self) -> list[str]:
        return self._names("tasks", {run.task for run in self.runs.values()})

    @cached_property
    def arms(self) -> list[str]:
        return self._names("arms", {run.arm for run in self.runs.values()})

    @cached_property
    def budgets(self) -> list[Budget]:
        return sorted({run.budget for run in self.runs.values()}, key=by_size)

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Raises FileNotFoundError, or ResultsError for rows that are no study's."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"results {path} do not exist; a study writes them: nnssl_study run study.yaml"
            )
        try:
            return cls(files.read_json_lines(path))
        except ResultsError as error:
            raise ResultsError(f"{path}, {error}") from None

    @classmethod
    def of_runs(cls, path: Path | str) -> Results:
        """As `read`. Raises ResultsError where they name no run."""
        results = cls.read(path)
        if not results.runs:
            raise ResultsError(
                f"{path} has no run yet; a study writes them: nnssl_study run study.yaml"
            )
        return results

    def labels(self, task: str) -> list[str]:
        runs = [run for run in self.runs.values() if run.task == task]
        return sorted(set(self._cases_of(runs)["label"]))

    def groups(self, task: str, arm: str) -> list[Group]:
        """With a finished run, by budget."""
        every = [Group(task, arm, budget) for budget in self.budgets]
        return [group for group in every if group in self.done]

    def scored_groups(self, task: str, arm: str) -> list[Group]:
        """With a Dice, by budget."""
        groups = self.groups(task, arm)
        return [group for group in groups if not self.scores(group, "dice").is_empty]

    def over_scratch(self, group: Group, measure: str) -> Scores:
        return self.difference(group, group.baseline, measure)

    def difference(self, group: Group, other: Group, measure: str) -> Scores:
        """`group` minus `other`, paired by seed and case; of the seeds and cases that both have."""
        ours, theirs = self._by_label(group), self._by_label(other)
        return Scores(paired_differences(ours, theirs, measure), self._subjects(group))

    def paired_dice(self, groups: Iterable[Group]) -> list[float]:
        """The mean Dice of each group over the seeds that all of them have; NaN where none is.
        A seed draws easier or harder cases: over other seeds a mean says nothing of the arm.
        """
        by_seed = [self.scores(group, "dice").frame.mean(axis=1).dropna() for group in groups]
        return pd.concat(by_seed, axis=1, join="inner").mean().tolist() if by_seed else []

    def _by_label(self, group: Group) -> pd.DataFrame:
        """A group's measures by seed, case and label."""
        if group not in self._labelled:
            seeds = {run.run: run.seed for run in self.done.get(group, ())}
            cases = _where(self._cases, self._cases["run"].isin(list(seeds)))
            keyed = cases.assign(seed=cases["run"].map(seeds)).set_index(["seed", "case", "label"])
            self._labelled[group] = keyed.filter(items=list(MEASURES))
        return self._labelled[group]

    def scores(self, group: Group, measure: str, label: str | None = None) -> Scores:
        """A group's measure by seed and case; the mean over a case's labels where `label` is
        None.
        """
        key = (group, measure, label)
        if key not in self._scores:
            self._scores[key] = self._scores_of(*key)
        return self._scores[key]

    def _scores_of(self, group: Group, measure: str, label: str | None) -> Scores:
        subjects = self._subjects(group)
        seeds = {run.run: run.seed for run in self.done.get(group, ())}
        values = self._pivot(measure, label).reindex(index=list(seeds), columns=subjects.index)
        return Scores(values.set_axis(list(seeds.values())), subjects)

    def _subjects(self, group: Group) -> pd.Series:
        """The subject of each case of a group, sorted by case."""
        if group not in self._subjects_of:
            cases = self._cases_of(self.done.get(group, ())).sort_values("case")
            last = cases.drop_duplicates("case", keep="last")
            self._subjects_of[group] = last.set_index("case")["subject"]
        return self._subjects_of[group]

    def _cases_of(self, runs: Iterable[RunRow]) -> pd.DataFrame:
        return _where(self._cases, self._cases["run"].isin([run.run for run in runs]))

    def _pivot(self, measure: str, label: str | None) -> pd.DataFrame:
        """A measure by run (rows) and case (columns), of one label or as the mean over all."""
        key = (measure, label)
        if key not in self._pivots:
            cases = self._cases if label is None else self._cases_with(label)
            self._pivots[key] = cases.pivot_table(index="run", columns="case", values=measure)
        return self._pivots[key]

    def _cases_with(self, label: str) -> pd.DataFrame:
        return _where(self._cases, self._cases["label"] == label)

    def epochs(self, run: str) -> list[EpochRow]:
        """The epochs of a run, in order."""
        return self._epochs.get(run, [])

    def cases_of(self, group: Group) -> float:
        """The number of labelled cases that a group was trained with, the mean over its runs; NaN
        where one does not say.
        """
        return float(np.mean([run.cases or np.nan for run in self.done[group]]))

    def modality(self, kind: str, name: str) -> str | None:
        """Of a task, or of an arm's pretraining, as the description says; None where it says
        nothing.
        """
        return self._described(kind, name).get("modality")

    def start(self, arm: str) -> str | None:
        """How the arm's training starts, as the description says."""
        return self._described("arms", arm).get("start")

    def _described(self, kind: str, name: str) -> dict:
        """A part of the description; empty where it is not there."""
        return next((part for part in self._parts(kind) if part.get("name") == name), {})

    def _parts(self, kind: str) -> list[dict]:
        parts = (self.study.description or {}).get(kind) or ()
        return [part for part in parts if isinstance(part, dict)]

    def _names(self, kind: str, there: set[str]) -> list[str]:
        names = [part.get("name") for part in self._parts(kind)]
        said = dict.fromkeys(name for name in names if name in there)
        return [*said, *sorted(there - said.keys())]

    def _groups(self) -> dict[Group, list[RunRow]]:
        """By task, arm, budget and seed; of two runs with all of them equal the last one counts."""
        found: dict[Group, dict[int, RunRow]] = {}
        for run in sorted(self.runs.values(), key=self._sort_key):
            if run.state == "done":
                found.setdefault(Group.of(run), {})[run.seed] = run
        return {group: list(by_seed.values()) for group, by_seed in found.items()}

    def _sort_key(self, run: RunRow) -> tuple:
        indices = self.tasks.index(run.task), self.arms.index(run.arm)
        return (*indices, by_size(run.budget), run.seed)


@dataclass(frozen=True)
class Scores:
    """frame: by seed (rows) and case (columns), NaN where a case has none. subject: by case."""

    frame: pd.DataFrame
    subject: pd.Series

    @property
    def seeds(self) -> list[int]:
        return self.frame.index.tolist()

    @property
    def cases(self) -> list[str]:
        return self.frame.columns.tolist()

    @property
    def values(self) -> np.ndarray:
        """[S C]"""
        return self.frame.to_numpy()

    @property
    def subjects(self) -> list[str]:
        """Whose each case is, [C]."""
        return self.subject.loc[self.frame.columns].tolist()

    @property
    def interval(self) -> Interval:
        return statistics.interval(self.values, self.subjects)

    def replicates(self, seed: int) -> np.ndarray:
        """[draws]"""
        return statistics.replicates(self.values, self.subjects, seed=seed)

    def test(self, smaller_is_better: bool) -> statistics.Test:
        """The paired test of these values, which are differences, against none."""
        return statistics.paired_test(self.values, self.subjects, smaller_is_better)

    @property
    def is_empty(self) -> bool:
        return bool(self.frame.isna().all(axis=None))

    @property
    def mean(self) -> float:
        """Over the cases of each seed, then over the seeds; NaN without any value."""
        return float(self.frame.mean(axis=1).mean())


def _of(kind: type[R], rows: list[Row]) -> list[R]:
    return [row for row in rows if isinstance(row, kind)]


def _where(frame: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """The rows of `frame` for which `mask` is true."""
    return frame.drop(index=frame.index[~mask])


def _frame(rows: list[CaseRow]) -> pd.DataFrame:
    """A case without a subject is its own."""
    columns = [field.name for field in fields(CaseRow)]
    frame = pd.DataFrame([vars(row) for row in rows], columns=columns)
    frame = frame.astype({"case": str, "label": str, **dict.fromkeys(MEASURES, float)})
    return frame.assign(subject=frame["subject"].fillna(frame["case"]).astype(str))
