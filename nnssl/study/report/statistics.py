"""Statistics of comparisons: intervals, paired tests and their correction, ranks and critical
differences.

Values come as [S C], seeds by cases. Cases of one subject are not independent and travel together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

LEVEL = 0.95  # of the intervals, and 1 - the error of the tests
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """`mean` with the bounds of its interval; NaN where there is nothing to tell from."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """False where there are no bounds."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Test:
    """A paired comparison. `better`, `worse`: subjects. `smallest`: the least p possible with this
    number of subjects.
    """

    n: int
    better: int
    worse: int
    p: float
    smallest: float


def by_subject(values: np.ndarray, subjects: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """[S C] to the sums and the numbers of values, both [S U], of the U subjects."""
    names, which = np.unique(subjects, return_inverse=True)
    member = np.eye(len(names))[which]
    there = ~np.isnan(values)
    return np.where(there, values, 0) @ member, there.astype(float) @ member


def replicates(
    values: np.ndarray, subjects: list[str], draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """[draws] means, each with the seeds and the subjects drawn again with replacement; NaN where
    there are fewer than two subjects.

    Seeds and subjects are drawn independently of each other, as rows and columns (the pigeonhole
    bootstrap, Owen 2007, arXiv 0712.1111): a hard case is hard for every seed. With one seed only
    the subjects are drawn. The same `seed` and shape draw alike, so that differences of replicates
    are paired.
    """
    sums, counts = by_subject(values, subjects)
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return np.full(draws, np.nan)
    of_rows, of_columns = _drawn(*sums.shape, draws, seed)
    # A seed's mean first, then the mean over the drawn seeds, as `Scores.mean`.
    weights = of_columns @ counts.T
    means = _divided(of_columns @ sums.T, weights, otherwise=0.0)
    of_rows = of_rows * (weights > 0)
    return _divided((of_rows * means).sum(axis=1), of_rows.sum(axis=1), otherwise=np.nan)


def _divided(sums: np.ndarray, counts: np.ndarray, otherwise: float) -> np.ndarray:
    """otherwise: where nothing was counted."""
    return np.divide(sums, counts, out=np.full(counts.shape, otherwise), where=counts > 0)


@lru_cache(maxsize=32)
def _drawn(rows: int, columns: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each row and each column is drawn, [draws rows] and [draws columns]. Not to be
    written to.
    """
    generator = np.random.default_rng(seed)
    of_rows = (
        generator.multinomial(rows, [1 / rows] * rows, size=draws)
        if rows > 1
        else np.ones((draws, 1))
    )
    return of_rows, generator.multinomial(columns, [1 / columns] * columns, size=draws).astype(
        float
    )


def interval(
    values: np.ndarray, subjects: list[str], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The mean of [S C] and its percentile interval of `LEVEL`; of one subject without bounds."""
    there = ~np.isnan(values)
    if not there.any():
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.nanmean(values[there.any(axis=1)], axis=1).mean())
    return Interval(mean, *bounds(replicates(values, subjects, draws, seed)))


def bounds(drawn: np.ndarray) -> tuple[float, float]:
    """The percentile interval of `LEVEL` of replicates; NaN where there are none."""
    if np.isnan(drawn).all():
        return np.nan, np.nan
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_test(
    differences: np.ndarray, subjects: list[str], smaller_is_better: bool = False
) -> Test:
    """Wilcoxon's signed-rank test, two-sided, on [S C] paired differences.

    A subject is one observation: the mean over its cases and the seeds. More seeds or frames of the
    same people are not more people. Differences of zero are left out, as Wilcoxon did; with none
    left p is 1.
    """
    means = _means_by_subject(differences, subjects)
    up, down = int((means > 0).sum()), int((means < 0).sum())
    better, worse = (down, up) if smaller_is_better else (up, down)
    smallest = min(1.0, 2.0 ** (1 - len(means)))
    return Test(len(means), better, worse, _wilcoxon(means[means != 0]), smallest)


def _means_by_subject(values: np.ndarray, subjects: list[str]) -> np.ndarray:
    """Means of [S C] by subject, of those that have a value; rounding noise is no difference."""
    sums, counts = (of_seeds.sum(axis=0) for of_seeds in by_subject(values, subjects))
    return (sums[counts > 0] / counts[counts > 0]).round(12)


def _wilcoxon(differences: np.ndarray) -> float:
    """p of some that are not zero."""
    if not len(differences):
        return 1.0
    # statistic and p, which SciPy leaves untyped
    return float(np.asarray(stats.wilcoxon(differences))[1])


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), which hold the family-wise error whatever the
    dependence.

    NaN, a comparison that could not be made, stays NaN and does not count.
    """
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    order = sorted((p, index) for index, p in enumerate(p_values) if p == p)
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Ranks:
    """means: of k arms over `blocks`, 1 is the best. `difference`: ranks farther apart differ; NaN
    where undefined.

    groups: the arms, as indices from the best, that do not differ significantly; only maximal
    groups of two or more.
    """

    means: list[float]
    blocks: int
    p: float
    difference: float
    groups: list[list[int]]

    @property
    def is_tested(self) -> bool:
        return not np.isnan(self.difference)


def ranks(scores: np.ndarray) -> Ranks:
    """[N k] scores, larger is better, of k arms in N blocks: Friedman's test and Nemenyi's critical
    difference.

    Demsar 2006, JMLR 7: CD = q sqrt(k (k + 1) / (6 N)), q the studentised range's quantile over
    sqrt(2). Ties share the mean of their ranks. Rows with NaN are left out; without a second row
    there is no test.
    """
    scores = scores[~np.isnan(scores).any(axis=1)]
    blocks, arms = scores.shape
    if not blocks or arms < 2:
        return Ranks([float("nan")] * arms, blocks, float("nan"), float("nan"), [])
    ranked = stats.rankdata(-scores.round(12), axis=1)
    means = ranked.mean(axis=0)
    if blocks < 2:
        return Ranks(means.tolist(), blocks, float("nan"), float("nan"), [])
    difference = critical_difference(arms, blocks)
    p, groups = _friedman(ranked), _rank_cliques(means, difference)
    return Ranks(means.tolist(), blocks, p, difference, groups)


def critical_difference(arms: int, blocks: int) -> float:
    """Nemenyi's: q sqrt(k (k + 1) / (6 N)) of k arms in N blocks."""
    q = stats.studentized_range.ppf(LEVEL, arms, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(arms * (arms + 1) / (6 * blocks)))


def _friedman(ranked: np.ndarray) -> float:
    """p of ranks [N k]."""
    blocks, arms = ranked.shape
    spread = ((ranked - (arms + 1) / 2) ** 2).sum()
    if spread == 0:
        return 1.0  # all tied
    statistic = (
        (arms - 1) * blocks**2 * ((ranked.mean(axis=0) - (arms + 1) / 2) ** 2).sum() / spread
    )
    return float(stats.chi2.sf(statistic, arms - 1))


def _rank_cliques(means: np.ndarray, difference: float) -> list[list[int]]:
    order = np.argsort(means, kind="stable")
    found: list[list[int]] = []
    for start, best in enumerate(order):
        group = [int(arm) for arm in order[start:] if means[arm] - means[best] <= difference]
        if len(group) > 1 and not (found and set(group) <= set(found[-1])):
            found.append(group)
    return found
