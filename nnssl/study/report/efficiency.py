"""Savings by pretraining: epochs and hours, labels, and the gain that carries over to another
modality.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from nnssl.study.report import statistics
from nnssl.study.report.curves import Convergence, Curve, Point, Saving, convergence, savings
from nnssl.study.report.results import Group, Results, Scores
from nnssl.study.report.statistics import Interval
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import BASELINE, Budget, grouped

MODALITY = "CT"  # of an arm's pretraining, where the description says nothing
NOT_PRETRAINED = ("scratch", "default")  # starts


def curves_of(results: Results, group: Group) -> dict[int, Curve]:
    """By seed, of the finished runs that have rows of epochs."""
    runs = [(run, results.epochs(run.run)) for run in results.done.get(group, ())]
    return {run.seed: Curve.of(epochs, run.iterations) for run, epochs in runs if epochs}


SPEED = Table(
    name="convergence",
    title="Convergence",
    note=(
        "Epochs and hours of fine-tuning until the validation Dice reaches a fraction of "
        "scratch's final one; the median over the seeds that the arm and scratch both have, and "
        "of these the mean is to be reached. A ratio below 1 is faster than scratch; in it an "
        "epoch counts by its iterations, which recipes may differ in. The Dice is "
        "nnU-Net's own while it trains, of random patches: good for comparing runs of one task, "
        "not with the scores above. From 100 epochs on it is averaged over a fiftieth of the "
        "training around each epoch. Hours of pretraining are not counted. Left out if scratch "
        "learnt nothing."
    ),
    columns=[
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
    ],
    formats={
        "epochs": "g",
        "hours": ".3g",
        "epochs / scratch's": ".2f",
        "hours / scratch's": ".2f",
    },
)


def speed(results: Results) -> Table:
    pairs = product(results.tasks, results.budgets)
    return SPEED.of(row for pair in pairs for row in _speed(results, *pair))


def _speed(results: Results, task: str, budget: Budget) -> Iterator[list[Cell]]:
    scratch = curves_of(results, Group(task, BASELINE, budget))
    for arm in results.arms:
        curves = curves_of(results, Group(task, arm, budget))
        seeds = [seed for seed in curves if seed in scratch]
        theirs = [scratch[seed] for seed in seeds]
        # to reach 90 % of nothing takes no time
        if any(curve.final > 0 for curve in theirs):
            for row in convergence([curves[seed] for seed in seeds], theirs):
                yield [task, str(budget), arm, *_convergence_cells(row)]


def _convergence_cells(row: Convergence) -> list[Cell]:
    return [
        f"{row.fraction:.0%}",
        row.target,
        row.epochs,
        row.hours,
        row.epoch_ratio,
        row.hour_ratio,
        f"{row.reached} of {row.seeds}",
    ]


def points(results: Results, task: str, arm: str) -> tuple[list[Point], list[Point]]:
    """Scratch's and the arm's, one for each budget where the number of cases is known; over the
    seeds that both have at all of these budgets, so none where there is no such seed.
    """
    found = [g for each in (BASELINE, arm) for g in results.scored_groups(task, each)]
    known = [group for group in found if results.cases_of(group) > 0]
    dice = zip(known, results.paired_dice(known), strict=True)
    made = [(g.arm, (results.cases_of(g), mean)) for g, mean in dice if not np.isnan(mean)]
    scratch, ours = ([point for of, point in made if of == each] for each in (BASELINE, arm))
    return scratch, ours


LABELS_SAVED = Table(
    name="labels_saved",
    title="Labels saved at equal Dice",
    note=(
        "How many labelled cases an arm needs to be as good as scratch is with more (or fewer), "
        "read off its curve of Dice against the logarithm of the number of cases, both over the "
        "seeds that arm and scratch have at all of their budgets. At most: the "
        "arm's fewest cases are already better, so what is saved is a lower bound. More than: its "
        "most cases are not enough, so nothing is known to be saved. The curves have few points "
        "and noise: small savings are none. Where scratch is no better with more cases than with "
        "fewer, labels cannot be saved, and the row is left out."
    ),
    columns=[
        "task",
        "arm",
        "scratch's cases",
        "scratch's Dice",
        "cases needed",
        "saved",
        "fraction saved",
    ],
    formats={"scratch's cases": "g", "saved": ".1f", "fraction saved": ".0%"},
)


def labels_saved(results: Results) -> Table:
    pairs = product(results.tasks, results.arms)
    return LABELS_SAVED.of(row for pair in pairs for row in _saved(results, *pair))


def _saved(results: Results, task: str, arm: str) -> Iterator[list[Cell]]:
    scratch, ours = points(results, task, arm)
    if arm == BASELINE or len(ours) < 2 or not scratch:
        return
    for saving in savings(scratch, ours):
        yield [task, arm, *_saving_cells(saving)]


def _saving_cells(saving: Saving) -> list[Cell]:
    needed = f"{saving.bound} {saving.needed:.3g}".strip()
    return [saving.cases, saving.dice, needed, *_known_to_be_saved(saving)]


def _known_to_be_saved(saving: Saving) -> list[float | None]:
    return [None, None] if saving.bound == "more than" else [saving.saved, saving.fraction]


GAP = Table(
    name="gap",
    title="Few-shot against many-shot",
    note=(
        "Dice with the most labelled cases less that with the fewest, paired by seed and case, "
        "over the seeds that the arm has at both. A small gap together with a high Dice of many is "
        "what a good pretraining gives; a small gap alone may be a bad many."
    ),
    columns=["task", "arm", "few", "many", "seeds", "Dice of few", "Dice of many", "gap"],
)


def gap(results: Results) -> Table:
    """Few-shot against many-shot: of each arm, its largest budget less its smallest."""
    pairs = product(results.tasks, results.arms)
    every = [results.groups(task, arm) for task, arm in pairs]
    return GAP.of(_gap(results, groups[0], groups[-1]) for groups in every if len(groups) > 1)


def _gap(results: Results, fewest: Group, most: Group) -> list[Cell]:
    gained = results.difference(most, fewest, "dice")
    what = [fewest.task, fewest.arm, str(fewest.budget), str(most.budget), len(gained.seeds)]
    return [*what, *results.paired_dice([fewest, most]), gained.interval]


ACROSS = Table(
    name="modality",
    title="From one modality to another",
    note=(
        "Within: tasks of the modality that the arm was pretrained on; across: tasks of another. "
        "Scratch has a row for each modality that other arms were pretrained on. "
        "The drop in Dice also holds how hard the tasks are; scratch's drop shows that part. Both "
        "are over the seeds that all arms here have. "
        "Gain: Dice minus scratch's on the same cases; gain lost: what of it does not carry over. "
        "Intervals by bootstrap over seeds and cases."
    ),
    columns=[
        "arm",
        "modality",
        "budget",
        "Dice within",
        "Dice across",
        "drop",
        "gain within",
        "gain across",
        "gain lost",
    ],
)


def modality(results: Results) -> Table:
    """From the modality of the pretraining to others: drop in Dice, and how much of the gain over
    scratch is left.
    """
    return ACROSS.of(row for arm in results.arms for row in _across(results, arm))


def _across(results: Results, arm: str) -> Iterator[list[Cell]]:
    """From each modality to each other one, at each budget."""
    tasks = grouped(results.tasks, lambda task: results.modality("tasks", task))
    kinds = sorted(kind for kind in tasks if kind)
    directions = product(_modalities(results, arm), kinds, results.budgets)
    for own, other, budget in directions:
        cells = _lost(results, tasks.get(own, []), tasks[other], arm, budget)
        if cells and other != own:
            yield [arm, f"{own} to {other}", str(budget), *cells]


def _modalities(results: Results, arm: str) -> list[str]:
    """That of the arm's pretraining; of scratch, which has none, those of the others, so that it is
    there for each of them to be read against. None of another arm that is not pretrained.
    """
    arms = [each for each in results.arms if arm in (BASELINE, each) and each != BASELINE]
    pretrained = [each for each in arms if results.start(each) not in NOT_PRETRAINED]
    return sorted({results.modality("arms", each) or MODALITY for each in pretrained})


def _lost(
    results: Results, within: list[str], across: list[str], arm: str, budget: Budget
) -> list[Cell]:
    """Dice within and across, their difference, and the same of the gains; nothing where one has no
    Dice.
    """
    dice = [_mean_dice(results, tasks, arm, budget) for tasks in (within, across)]
    if np.isnan(dice).any():
        return []
    gains = [_gain(results, tasks, arm, budget) for tasks in (within, across)]
    intervals = [None] * 3 if arm == BASELINE else _intervals(*gains)
    return [*dice, dice[0] - dice[1], *intervals]


def _mean_dice(results: Results, tasks: list[str], arm: str, budget: Budget) -> float:
    found = [_table_dice(results, task, budget).get(arm, np.nan) for task in tasks]
    return float(np.mean(found)) if found else float("nan")


def _table_dice(results: Results, task: str, budget: Budget) -> dict[str, float]:
    """By arm of this table, over the seeds that all of them have."""
    every = [Group(task, arm, budget) for arm in results.arms if _modalities(results, arm)]
    groups = [group for group in every if not results.scores(group, "dice").is_empty]
    dice = zip(groups, results.paired_dice(groups), strict=True)
    return {group.arm: mean for group, mean in dice}


@dataclass(frozen=True)
class Gain:
    """In Dice, over scratch: the mean over some tasks, and its replicates [draws]."""

    mean: float
    drawn: np.ndarray

    @classmethod
    def over(cls, pairs: list[Scores], seeds: list[int]) -> Gain:
        """pairs: of each task, over scratch; seeds: of their replicates."""
        drawn = [pair.replicates(seed) for pair, seed in zip(pairs, seeds, strict=True)]
        return cls(float(np.mean([pair.mean for pair in pairs])), np.mean(drawn, axis=0))

    def minus(self, other: Gain) -> Gain:
        return Gain(self.mean - other.mean, self.drawn - other.drawn)

    @property
    def interval(self) -> Interval:
        return Interval(self.mean, *statistics.bounds(self.drawn))


def _gain(results: Results, tasks: list[str], arm: str, budget: Budget) -> Gain | None:
    """Its replicates are independent from task to task; None where a task has no pair."""
    pairs = [results.over_scratch(Group(task, arm, budget), "dice") for task in tasks]
    if not pairs or not all(pair.values.size for pair in pairs):
        return None
    return Gain.over(pairs, [results.tasks.index(task) for task in tasks])


def _intervals(within: Gain | None, across: Gain | None) -> list[Interval | None]:
    """Intervals of both gains, and of what is lost from one to the other."""
    lost = within.minus(across) if within and across else None
    return [gain and gain.interval for gain in (within, across, lost)]
