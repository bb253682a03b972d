"""Convergence against scratch, and data efficiency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import pandas as pd

from nnssl.study.rows import EpochRow

FRACTIONS = (0.90, 0.95, 0.99)  # of scratch's final validation Dice
NEVER = float("inf")

Point = tuple[float, float]  # number of labelled cases, Dice


def smooth(values: Sequence[float]) -> np.ndarray:
    """Means over windows around each epoch, a fiftieth of the training long; the values themselves
    below 100 epochs.

    Nothing lags, as nnU-Net's moving average does by some ten epochs. Windows end with the curve.
    """
    window = 2 * (len(values) // 100) + 1
    means = pd.Series(values, dtype=float).rolling(window, min_periods=1, center=True).mean()
    return np.asarray(means)


@dataclass(frozen=True)
class Curve:
    """A run's training: validation Dice (`smooth`), and the hours gone by, at the end of each
    epoch. `iterations`: of an epoch, where known.
    """

    dice: np.ndarray
    hours: np.ndarray
    iterations: int | None = None

    @classmethod
    def of(cls, epochs: Sequence[EpochRow], iterations: int | None = None) -> Curve:
        """From the rows of a run; a Dice of null, where no label was met, counts as the one before,
        or 0.
        """
        dice = pd.Series([row.dice for row in epochs], dtype=float).ffill().fillna(0.0)
        return cls(smooth(dice), _hours(epochs), iterations)

    @property
    def final(self) -> float:
        return float(self.dice[-1])

    def reaches(self, target: float) -> tuple[float, float]:
        """The epochs and hours after which the Dice is first at `target`; (NEVER, NEVER) where it
        is not.
        """
        there = self.dice >= target
        if not there.any():
            return NEVER, NEVER
        first = int(there.argmax())
        return float(first + 1), float(self.hours[first])


def _hours(epochs: Sequence[EpochRow]) -> np.ndarray:
    return np.cumsum([row.seconds or 0.0 for row in epochs]) / 3600


@dataclass(frozen=True)
class Convergence:
    """Medians over a group's seeds; NEVER where at least half of the seeds do not get there.

    epochs, hours:             to `fraction` of scratch's final Dice, `target`.
    epoch_ratio, hour_ratio:   to scratch's own; below 1 is faster. NaN where scratch has none.
                               An epoch counts by its iterations.
    reached, seeds:            how many of the seeds got there.
    """

    fraction: float
    target: float
    epochs: float
    hours: float
    epoch_ratio: float
    hour_ratio: float
    reached: int
    seeds: int


def convergence(arm: list[Curve], scratch: list[Curve]) -> list[Convergence]:
    """For each of FRACTIONS; the target is that of the mean of scratch's final Dice over its
    seeds.
    """
    final = mean_final(scratch)
    return [_convergence(arm, scratch, fraction, fraction * final) for fraction in FRACTIONS]


def mean_final(curves: list[Curve]) -> float:
    return float(np.mean([curve.final for curve in curves]))


def _convergence(
    arm: list[Curve], scratch: list[Curve], fraction: float, target: float
) -> Convergence:
    ours = [curve.reaches(target) for curve in arm]
    theirs = _medians(curve.reaches(target) for curve in scratch)
    epochs, hours = _medians(ours)
    ratios = _ratio(epochs * _longer(arm, scratch), theirs[0]), _ratio(hours, theirs[1])
    reached = sum(epoch < NEVER for epoch, _ in ours)
    return Convergence(fraction, target, epochs, hours, *ratios, reached, len(arm))


def _longer(arm: list[Curve], scratch: list[Curve]) -> float:
    """An epoch of the arm in epochs of scratch's: by iterations, where both are known."""
    ours, theirs = arm[0].iterations, scratch[0].iterations
    return ours / theirs if ours and theirs else 1.0


def _medians(reached: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of epochs and hours, each over the seeds. With a NEVER in the middle it is NEVER."""
    epochs, hours = zip(*reached, strict=True)
    return median(epochs), median(hours)


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if 0 < theirs < NEVER else float("nan")


@dataclass(frozen=True)
class Saving:
    """To be as good as scratch with `cases` labelled cases (Dice `dice`), an arm needs `needed`.

    bound: "" where `needed` was interpolated; "at most" where the arm's fewest cases are already
    better; "more than" where its most cases are not enough.
    """

    cases: float
    dice: float
    needed: float
    bound: str

    @property
    def saved(self) -> float:
        return self.cases - self.needed

    @property
    def fraction(self) -> float:
        return self.saved / self.cases


def savings(scratch: list[Point], arm: list[Point]) -> list[Saving]:
    """Labels saved at equal Dice, at each of scratch's budgets.

    Between an arm's budgets the Dice is linear in the logarithm of the number; the first crossing
    counts. A budget of scratch's that is no better than a smaller one of its own is left out.
    """
    rising = _rising(sorted(scratch))
    return [Saving(cases, dice, *_needed(sorted(arm), dice)) for cases, dice in rising]


def _rising(points: list[Point]) -> list[Point]:
    """Those with a better Dice than all before them."""
    return [
        (cases, dice)
        for index, (cases, dice) in enumerate(points)
        if all(dice > less for _, less in points[:index])
    ]


def _needed(points: list[Point], dice: float) -> tuple[float, str]:
    fewest, worst = points[0]
    if worst >= dice:
        return fewest, "" if worst == dice else "at most"
    for before, after in pairwise(points):
        if after[1] >= dice:
            return _cases_at(dice, before, after), ""
    return points[-1][0], "more than"


def _cases_at(dice: float, before: Point, after: Point) -> float:
    """The number of cases at which the line between two points is at `dice`."""
    (few, low), (many, high) = before, after
    return few * (many / few) ** ((dice - low) / (high - low))
