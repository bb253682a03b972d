"""The measures of a study: scores with intervals, comparisons with scratch, and ranks over the
tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, product

import numpy as np

from nnssl.study.report import statistics
from nnssl.study.report.results import MEASURES, SMALLER_IS_BETTER, Group, Results, Scores
from nnssl.study.report.statistics import Interval, Ranks
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import BASELINE, Budget, by_size

FORMATS = {
    **dict.fromkeys(MEASURES.values(), ".3f"),
    MEASURES["hd95"]: ".1f",
    "p": ".2g",
    "p (Holm)": ".2g",
}
ERROR = 1 - statistics.LEVEL


def groups(results: Results) -> list[Group]:
    """The groups with a finished run, by task, budget and arm."""
    tasks, arms = results.tasks.index, results.arms.index
    return sorted(results.done, key=lambda g: (tasks(g.task), by_size(g.budget), arms(g.arm)))


def measures(results: Results) -> list[str]:
    """Those of MEASURES that any case has."""
    return [
        name
        for name in MEASURES
        if not all(results.scores(group, name).is_empty for group in groups(results))
    ]


SCORES = Table(
    name="scores",
    title="Scores",
    note=(
        "Mean over the labels of a case, then over the cases, then over the seeds; in brackets "
        "the 95 % interval by bootstrap over seeds and cases together. Overlapping intervals do "
        "not mean that arms are equal: the comparisons below are paired."
    ),
    columns=["task", "budget", "arm", "labelled cases", "seeds", "validation cases"],
    formats={**FORMATS, "labelled cases": "g"},
)
BY_LABEL = Table(
    name="labels",
    title="Scores by label",
    note="As above, for each label alone.",
    columns=["task", "budget", "arm", "label"],
    formats=FORMATS,
)


def tables(results: Results) -> list[Table]:
    """Scores over the labels, and by label."""
    there = measures(results)
    named = [MEASURES[measure] for measure in there]
    return [
        SCORES.with_columns(named, _score_rows(results, there)),
        BY_LABEL.with_columns(named, _label_rows(results, there)),
    ]


def _score_rows(results: Results, measures: list[str]) -> Iterator[list[Cell]]:
    for group in groups(results):
        yield [*_group_size_cells(results, group), *_intervals(results, measures, group)]


def _label_rows(results: Results, measures: list[str]) -> Iterator[list[Cell]]:
    for group in groups(results):
        for label in results.labels(group.task):
            yield [*_group_name_cells(group), label, *_intervals(results, measures, group, label)]


def _group_name_cells(group: Group) -> list[Cell]:
    return [group.task, str(group.budget), group.arm]


def _group_size_cells(results: Results, group: Group) -> list[Cell]:
    dice, cases = results.scores(group, "dice"), results.cases_of(group)
    return [*_group_name_cells(group), round(cases, 1), *dice.frame.shape]


def _intervals(
    results: Results, measures: list[str], group: Group, label: str | None = None
) -> list[Cell]:
    return [results.scores(group, measure, label).interval for measure in measures]


@dataclass(frozen=True)
class Comparison:
    """An arm minus scratch in one measure, paired by seed and case."""

    group: Group
    measure: str
    seeds: int
    difference: Interval
    test: statistics.Test
    adjusted: float

    @property
    def differs(self) -> bool:
        """By the test, for these trainings, and by the interval, for other draws and trainings."""
        return self.adjusted < ERROR and self.difference.excludes(0)

    @property
    def is_better(self) -> bool:
        """After correction, where more is better."""
        return self.differs and self.difference.mean > 0

    @property
    def is_worse(self) -> bool:
        return self.differs and self.difference.mean < 0

    @property
    def cells(self) -> list[Cell]:
        """The row of the table of comparisons."""
        group, test = self.group, self.test
        return [
            *(*_group_name_cells(group), MEASURES[self.measure], self.difference),
            *(self.seeds, test.n, test.better, test.worse, test.p, self.adjusted),
            "yes" if self.differs else "no",
            test.smallest,
        ]


def compare_with_scratch(results: Results) -> list[Comparison]:
    """Every arm with scratch, in every measure; Holm's correction is over all comparisons of a
    measure.
    """
    return [found for measure in measures(results) for found in _compare(results, measure)]


def _compare(results: Results, measure: str) -> list[Comparison]:
    pairs = _paired_with_scratch(results, measure)
    tests = [pair.test(measure in SMALLER_IS_BETTER) for pair in pairs.values()]
    adjusted = statistics.holm([test.p for test in tests])
    return [
        Comparison(group, measure, len(pair.seeds), pair.interval, test, p)
        for (group, pair), test, p in zip(pairs.items(), tests, adjusted, strict=True)
    ]


def _paired_with_scratch(results: Results, measure: str) -> dict[Group, Scores]:
    """The differences of the groups that have any."""
    others = [group for group in groups(results) if group.arm != BASELINE]
    pairs = {g: results.over_scratch(g, measure) for g in others if g.baseline in results.done}
    return {group: pair for group, pair in pairs.items() if not pair.is_empty}


COMPARISONS = Table(
    name="comparisons",
    title="Compared with scratch",
    note=(
        "Arm minus scratch, paired by seed and case. p: Wilcoxon's signed-rank test, two-sided, "
        "one observation per subject (its cases and seeds averaged): it generalises over subjects, "
        "for these trainings only. p (Holm): corrected for all comparisons of the same measure on "
        "this page. “Differs” where it is below 0.05 and the interval of the difference, which "
        "covers subjects and seeds, excludes 0. With one seed the interval covers subjects only. "
        "Smallest p: the smallest possible value with so few subjects; if it exceeds 0.05 when "
        "multiplied by the number of comparisons, no difference can be significant, however large. "
        "“No” is not evidence of equality: read the interval of the difference. For HD95 smaller "
        "is better."
    ),
    columns=[
        "task",
        "budget",
        "arm",
        "measure",
        "difference",
        "seeds",
        "subjects",
        "better",
        "worse",
        "p",
        "p (Holm)",
        "differs",
        "smallest p",
    ],
    formats={**FORMATS, "smallest p": ".2g"},
)


def comparisons(compared: list[Comparison]) -> Table:
    return COMPARISONS.of(comparison.cells for comparison in compared)


@dataclass(frozen=True)
class Ranking:
    """Dice ranks of `arms` over the tasks. `overall`: of the means over the budgets; `by_budget`:
    of each.
    """

    arms: list[str]
    left_out: list[str]
    budgets: list[Budget]
    overall: Ranks
    by_budget: dict[Budget, Ranks]


def rank(results: Results) -> Ranking:
    """Only of the arms that have a seed of scratch's in every task and at every budget that scratch
    has; over the seeds that all of them have there.
    """
    tasks, budgets, arms = _comparable(_paired(results), results.arms)
    ranked, left_out = (list(compress(results.arms, which)) for which in (arms, ~arms))
    common = list(compress(results.budgets, budgets))
    cube = _dice(results, list(compress(results.tasks, tasks)), common, ranked)
    by_budget = {budget: statistics.ranks(cube[:, index]) for index, budget in enumerate(common)}
    overall = statistics.ranks(cube.mean(axis=1) if common else np.zeros((0, 0)))
    return Ranking(ranked, left_out, common, overall, by_budget)


def _comparable(there: np.ndarray, arms: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tasks, budgets and arms are ranked, from where there is a pair [tasks budgets arms]."""
    is_scratch = np.array([arm == BASELINE for arm in arms], dtype=bool)
    wanted = np.any(there & is_scratch, axis=2)
    tasks = np.any(wanted, axis=1)
    budgets = np.all(wanted[tasks], axis=0) & np.any(tasks)
    complete = np.all(there | ~wanted[..., None], axis=(0, 1))
    return tasks, budgets, complete & np.any(budgets)


def _paired(results: Results) -> np.ndarray:
    """Where a group has a seed of scratch's with a Dice, [tasks budgets arms]."""
    shape = len(results.tasks), len(results.budgets), len(results.arms)
    combinations = product(results.tasks, results.budgets, results.arms)
    found = [Group(task, arm, budget) for task, budget, arm in combinations]
    means = [results.paired_dice([group, group.baseline])[0] for group in found]
    return ~np.isnan(means).reshape(shape)


def _dice(results: Results, tasks: list[str], budgets: list[Budget], arms: list[str]) -> np.ndarray:
    """[tasks budgets arms], NaN where the arms have no seed in common."""
    pairs = product(tasks, budgets)
    means = [results.paired_dice(Group(t, arm, b) for arm in arms) for t, b in pairs]
    return np.array(means, dtype=float).reshape(len(tasks), len(budgets), len(arms))


def ranks(ranking: Ranking) -> Table:
    overall = ranking.overall
    rows = [
        [str(budget), ranks.blocks, *ranks.means] for budget, ranks in ranking.by_budget.items()
    ]
    if ranking.arms:
        rows.append(["mean of the budgets", overall.blocks, *overall.means])
    columns, formats = ["budget", "tasks", *ranking.arms], dict.fromkeys(ranking.arms, ".2f")
    return Table("ranks", "Ranks over tasks", _about_ranks(ranking), columns, rows, formats)


def _about_ranks(ranking: Ranking) -> str:
    note = "Mean rank by Dice over the tasks, of the seeds that all arms here have; 1 is the best. "
    if ranking.overall.is_tested:
        note += _about_tests(ranking.overall)
    elif ranking.arms:
        note += "One task is one observation: there is no test. "
    if ranking.left_out:
        note += (
            "Left out, in some task or budget without a seed that scratch has too: "
            f"{', '.join(ranking.left_out)}."
        )
    return note


def _about_tests(overall: Ranks) -> str:
    return (
        f"Friedman's test on the last row: p = {overall.p:.2g}. Nemenyi's critical difference at "
        f"0.05 is {overall.difference:.2f}: arms whose ranks differ by less do not differ "
        "significantly. A task is one observation; budgets of a task are not independent and are "
        "averaged first. "
    )
