"""What pretraining saves: epochs and hours, labels, and what is left of it in another modality."""

from __future__ import annotations

import numpy as np

from nnssl.study.report import statistics
from nnssl.study.report.curves import Curve, Saving, convergence, savings
from nnssl.study.report.results import BASELINE, Budget, Group, Results
from nnssl.study.report.statistics import Interval
from nnssl.study.report.tables import Table

MODALITY = "CT"  # of an arm's pretraining, where the description says nothing


def curves_of(results: Results, group: Group) -> list[Curve]:
    """Of the finished runs that have rows of epochs, by seed."""
    rows = [results.epochs(run["run"]) for run in results.done.get(group, ())]
    return [Curve.of(epochs) for epochs in rows if epochs]


def speed(results: Results) -> Table:
    rows = []
    for task in results.tasks:
        for budget in results.budgets:
            scratch = curves_of(results, Group(task, BASELINE, budget))
            # to reach 90 % of nothing takes no time
            if not any(curve.final > 0 for curve in scratch):
                continue
            for arm in results.arms:
                curves = curves_of(results, Group(task, arm, budget))
                if not curves:
                    continue
                rows += [
                    [
                        task,
                        str(budget),
                        arm,
                        f"{row.fraction:.0%}",
                        row.target,
                        row.epochs,
                        row.hours,
                        row.epoch_ratio,
                        row.hour_ratio,
                        f"{row.reached} of {row.seeds}",
                    ]
                    for row in convergence(curves, scratch)
                ]
    columns = [
        "task",
        "budget",
        "arm",
        "of scratch's",
        "Dice to reach",
        "epochs",
        "hours",
        "epochs / scratch's",
        "hours / scratch's",
        "seeds that did",
    ]
    note = (
        "Epochs and hours of fine-tuning until the validation Dice reaches a fraction of scratch's "
        "final one (its mean over the seeds); the median over the seeds. A ratio below 1 is faster "
        "than scratch. The Dice is nnU-Net's own while it trains, of random patches, smoothed as "
        "in its progress.png: good for comparing runs of one task, not with the scores above. "
        "Hours of pretraining are not counted. Left out where scratch learnt nothing."
    )
    formats = {
        "epochs": "g",
        "hours": ".3g",
        "epochs / scratch's": ".2f",
        "hours / scratch's": ".2f",
    }
    return Table("convergence", "Convergence", note, columns, rows, formats)


def points(results: Results, task: str, arm: str) -> list[tuple[float, float]]:
    """(labelled cases, Dice) of an arm's budgets in a task."""
    groups = [Group(task, arm, budget) for budget in results.budgets]
    found = [
        (results.cases_of(g), results.scores(g, "dice").mean) for g in groups if g in results.done
    ]
    return [(cases, dice) for cases, dice in found if dice == dice]


def labels_saved(results: Results) -> Table:
    rows = []
    for task in results.tasks:
        scratch = points(results, task, BASELINE)
        for arm in results.arms:
            ours = points(results, task, arm)
            if arm == BASELINE or len(ours) < 2 or not scratch:
                continue
            for saving in savings(scratch, ours):
                needed = f"{saving.bound} {saving.needed:.3g}".strip()
                rows.append([task, arm, saving.cases, saving.dice, needed, *_saved(saving)])
    columns = [
        "task",
        "arm",
        "scratch's cases",
        "scratch's Dice",
        "cases needed",
        "saved",
        "fraction saved",
    ]
    note = (
        "How many labelled cases an arm needs to be as good as scratch is with more (or fewer), "
        "read off its curve of Dice against the logarithm of the number of cases. At most: the "
        "arm's fewest cases are already better, so what is saved is a lower bound. More than: its "
        "most cases are not enough, so nothing is known to be saved. The curves have few points "
        "and noise: small savings are none. Where scratch is no better with more cases than with "
        "fewer, labels cannot be saved, and the row is left out."
    )
    return Table("labels_saved", "Labels saved at equal Dice", note, columns, rows,
                 {"scratch's cases": "g", "saved": ".1f", "fraction saved": ".0%"})  # fmt: skip


def _saved(saving: Saving) -> list[float | None]:
    return [None, None] if saving.bound == "more than" else [saving.saved, saving.fraction]


def gap(results: Results) -> Table:
    """Few-shot against many-shot: of each arm, its largest budget less its smallest."""
    rows = []
    for task in results.tasks:
        for arm in results.arms:
            groups = [
                g for g in (Group(task, arm, b) for b in results.budgets) if g in results.done
            ]
            if len(groups) < 2:
                continue
            few, many = (results.scores(g, "dice") for g in (groups[0], groups[-1]))
            paired = many.minus(few)
            difference = statistics.interval(paired.values, paired.subjects)
            budgets = [str(groups[0].budget), str(groups[-1].budget)]
            rows.append([task, arm, *budgets, few.mean, many.mean, difference])
    columns = ["task", "arm", "few", "many", "Dice of few", "Dice of many", "gap"]
    note = (
        "Dice with the most labelled cases less that with the fewest, paired by seed and case. A "
        "small gap beside a high Dice of many is what a good pretraining gives; a small gap alone "
        "may be a bad many."
    )
    return Table("gap", "Few-shot against many-shot", note, columns, rows)


def modality(results: Results) -> Table:
    """From the modality of the pretraining to others: drop in Dice, and how much of the gain over
    scratch is left.
    """
    of_task = {task: results.modality("tasks", task) for task in results.tasks}
    rows = []
    for arm in results.arms:
        own = results.modality("arms", arm) or MODALITY
        inside = [task for task in results.tasks if of_task[task] == own]
        others = {kind for kind in of_task.values() if kind is not None and kind != own}
        for other in sorted(others):
            outside = [task for task in results.tasks if of_task[task] == other]
            for budget in results.budgets:
                dice = [_mean_dice(results, tasks, arm, budget) for tasks in (inside, outside)]
                gains = [_gain(results, tasks, arm, budget) for tasks in (inside, outside)]
                if np.isnan(dice).any():
                    continue
                lost = _difference(*gains)
                cells = (
                    [None] * 3
                    if arm == BASELINE
                    else [_summary(gains[0]), _summary(gains[1]), _summary(lost)]
                )
                rows.append(
                    [arm, f"{own} to {other}", str(budget), *dice, dice[0] - dice[1], *cells]
                )
    columns = [
        "arm",
        "modality",
        "budget",
        "Dice within",
        "Dice across",
        "drop",
        "gain within",
        "gain across",
        "gain lost",
    ]
    note = (
        "Within: tasks of the modality that the arm was pretrained on; across: tasks of another. "
        "The drop in Dice also holds how hard the tasks are; scratch's drop shows that part. "
        "Gain: Dice minus scratch's on the same cases; gain lost: what of it does not carry over. "
        "Intervals by bootstrap over seeds and cases."
    )
    return Table("modality", "From one modality to another", note, columns, rows)


Gain = tuple[float, np.ndarray]  # the mean, and its replicates


def _mean_dice(results: Results, tasks: list[str], arm: str, budget: Budget) -> float:
    found = [results.scores(Group(task, arm, budget), "dice").mean for task in tasks]
    return float(np.mean(found)) if found else float("nan")


def _gain(results: Results, tasks: list[str], arm: str, budget: Budget) -> Gain | None:
    """Mean over the tasks, and its replicates, independent from task to task; None where a task has
    no pair.
    """
    means, drawn = [], []
    for task in tasks:
        groups = Group(task, arm, budget), Group(task, BASELINE, budget)
        paired = results.scores(groups[0], "dice").minus(results.scores(groups[1], "dice"))
        if not paired.values.size:
            return None
        means.append(paired.mean)
        drawn.append(
            statistics.replicates(paired.values, paired.subjects, seed=results.tasks.index(task))
        )
    return (float(np.mean(means)), np.mean(drawn, axis=0)) if means else None


def _difference(first: Gain | None, second: Gain | None) -> Gain | None:
    return (first[0] - second[0], first[1] - second[1]) if first and second else None


def _summary(gain: Gain | None) -> Interval | None:
    if gain is None:
        return None
    tail = (1 - statistics.LEVEL) / 2
    low, high = np.nanquantile(gain[1], [tail, 1 - tail])
    return Interval(gain[0], float(low), float(high))
