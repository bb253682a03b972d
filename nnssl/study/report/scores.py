"""The measures of a study: scores with intervals, comparisons with scratch, and ranks over the
tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from nnssl.study.report import statistics
from nnssl.study.report.results import (
    BASELINE,
    MEASURES,
    SMALLER_IS_BETTER,
    Budget,
    Group,
    Results,
    Scores,
)
from nnssl.study.report.statistics import Interval, Ranks
from nnssl.study.report.tables import Table

FORMATS = {
    **dict.fromkeys(MEASURES.values(), ".3f"),
    MEASURES["hd95"]: ".1f",
    "p": ".2g",
    "p (Holm)": ".2g",
}
ERROR = 1 - statistics.LEVEL


def groups(results: Results) -> list[Group]:
    """The groups with a finished run, by task, budget and arm."""
    every = product(results.tasks, results.budgets, results.arms)
    return [
        g for g in (Group(task, arm, budget) for task, budget, arm in every) if g in results.done
    ]


def measures(results: Results) -> list[str]:
    """Those of MEASURES that any case has."""
    return [
        name for name in MEASURES if any(_any(results.scores(g, name)) for g in groups(results))
    ]


def scores(results: Results) -> Table:
    there, rows = measures(results), []
    for group in groups(results):
        dice = results.scores(group, "dice")
        cells = [_interval(results.scores(group, name)) for name in there]
        numbers = [round(results.cases_of(group), 1), len(dice.seeds), len(dice.cases)]
        rows.append([group.task, str(group.budget), group.arm, *numbers, *cells])
    columns = [
        "task",
        "budget",
        "arm",
        "labelled cases",
        "seeds",
        "validation cases",
        *(MEASURES[n] for n in there),
    ]
    note = (
        "Mean over the labels of a case, then over the cases, then over the seeds; in brackets "
        "the 95 % interval by bootstrap over seeds and cases together. Overlapping intervals do "
        "not mean that arms are alike: the comparisons below are paired."
    )
    return Table("scores", "Scores", note, columns, rows, {**FORMATS, "labelled cases": "g"})


def by_label(results: Results) -> Table:
    there, rows = measures(results), []
    for group in groups(results):
        for label in results.labels(group.task):
            cells = [_interval(results.scores(group, name, label)) for name in there]
            rows.append([group.task, str(group.budget), group.arm, label, *cells])
    columns = ["task", "budget", "arm", "label", *(MEASURES[name] for name in there)]
    return Table(
        "labels", "Scores by label", "As above, for each label alone.", columns, rows, FORMATS
    )


@dataclass(frozen=True)
class Comparison:
    """An arm minus scratch in one measure, paired by seed and case."""

    group: Group
    measure: str
    difference: Interval
    test: statistics.Test
    adjusted: float

    @property
    def differs(self) -> bool:
        return self.adjusted < ERROR


def compare(results: Results) -> list[Comparison]:
    """Every arm with scratch, in every measure; Holm's correction is over all comparisons of a
    measure.
    """
    made: list[Comparison] = []
    for measure in measures(results):
        tested = []
        for group in groups(results):
            baseline = Group(group.task, BASELINE, group.budget)
            if group.arm == BASELINE or baseline not in results.done:
                continue
            paired = results.scores(group, measure).minus(results.scores(baseline, measure))
            if _any(paired):
                smaller = measure in SMALLER_IS_BETTER
                test = statistics.paired_test(paired.values, paired.subjects, smaller)
                tested.append((group, measure, _interval(paired), test))
        adjusted = statistics.holm([test.p for *_, test in tested])
        made += [
            Comparison(group, of, interval, test, p)
            for (group, of, interval, test), p in zip(tested, adjusted, strict=True)
        ]
    return made


def comparisons(made: list[Comparison]) -> Table:
    rows = [
        [
            c.group.task,
            str(c.group.budget),
            c.group.arm,
            MEASURES[c.measure],
            c.difference,
            c.test.n,
            c.test.better,
            c.test.worse,
            c.test.p,
            c.adjusted,
            ("yes" if c.differs else "no"),
            c.test.smallest,
        ]
        for c in made
    ]
    columns = [
        "task",
        "budget",
        "arm",
        "measure",
        "difference",
        "subjects",
        "better",
        "worse",
        "p",
        "p (Holm)",
        "differs",
        "smallest p",
    ]
    note = (
        "Arm minus scratch, paired by seed and case. p: Wilcoxon's signed-rank test, two-sided, "
        "one observation a subject (its cases and seeds averaged). p (Holm): corrected for all "
        "comparisons of the same measure on this page; “differs” where it is below 0.05. Smallest "
        "p: what so few subjects can give at best; where it times the number of comparisons is "
        "above 0.05, no difference however large could be told. “No” is not evidence of equality: "
        "read the interval of the difference. For HD95 smaller is better."
    )
    return Table(
        "comparisons",
        "Compared with scratch",
        note,
        columns,
        rows,
        {**FORMATS, "smallest p": ".2g"},
    )


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
    """Only of the arms that have a Dice in every task and at every budget that scratch has."""
    cells = {g: results.scores(g, "dice").mean for g in groups(results)}
    places = [
        (t, b)
        for t in results.tasks
        for b in results.budgets
        if not np.isnan(_of(cells, t, BASELINE, b))
    ]
    arms = [
        arm for arm in results.arms if all(not np.isnan(_of(cells, t, arm, b)) for t, b in places)
    ]
    left_out = [arm for arm in results.arms if arm not in arms]
    tasks = [task for task in results.tasks if any(task == t for t, _ in places)]
    common = [b for b in results.budgets if all((task, b) in places for task in tasks)]
    if not places or not common:
        return Ranking([], results.arms, [], statistics.ranks(np.zeros((0, 0))), {})
    cube = np.array(
        [[[_of(cells, task, arm, b) for b in common] for arm in arms] for task in tasks]
    )
    by_budget = {b: statistics.ranks(cube[..., place]) for place, b in enumerate(common)}
    return Ranking(arms, left_out, common, statistics.ranks(cube.mean(axis=2)), by_budget)


def ranks(ranking: Ranking) -> Table:
    overall = ranking.overall
    rows = [
        [str(budget), ranks.blocks, *ranks.means] for budget, ranks in ranking.by_budget.items()
    ]
    if ranking.arms:
        rows.append(["mean of the budgets", overall.blocks, *overall.means])
    note = "Mean rank by Dice over the tasks; 1 is the best. "
    if overall.difference == overall.difference:
        note += (
            f"Friedman's test on the last row: p = {overall.p:.2g}. Nemenyi's critical difference "
            f"at 0.05 is {overall.difference:.2f}: arms whose ranks differ by less cannot be told "
            "apart. A task is one observation; budgets of a task are not independent and are "
            "averaged first. "
        )
    elif ranking.arms:
        note += "One task is one observation: there is no test. "
    if ranking.left_out:
        note += f"Left out, having no result in some task or budget: {', '.join(ranking.left_out)}."
    return Table("ranks", "Ranks over tasks", note, ["budget", "tasks", *ranking.arms], rows,
                 dict.fromkeys(ranking.arms, ".2f"))  # fmt: skip


def _of(cells: dict[Group, float], task: str, arm: str, budget: Budget) -> float:
    return cells.get(Group(task, arm, budget), float("nan"))


def _any(scores: Scores) -> bool:
    return bool(scores.values.size) and not np.isnan(scores.values).all()


def _interval(scores: Scores) -> Interval:
    return statistics.interval(scores.values, scores.subjects)
