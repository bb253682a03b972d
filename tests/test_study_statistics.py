"""Intervals, tests, correction and ranks against scipy, enumeration, and published numbers."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from nnssl.study.report import statistics

NAMES = [f"case{number}" for number in range(40)]


def drawn(seeds: int, cases: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.8, 0.1, size=(seeds, cases))


def test_an_interval_of_one_seed_is_scipys_percentile_bootstrap():
    values = drawn(1, 25)
    ours = statistics.interval(values, NAMES[:25], draws=20000)
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_the_spread_of_replicates_is_that_of_resampled_rows_and_columns():
    """Drawn in a plain loop: rows and columns with replacement, independently."""
    values = drawn(3, 12) + np.array([[0.2], [0.0], [-0.2]])
    generator = np.random.default_rng(3)
    looped = [
        values[np.ix_(generator.integers(3, size=3), generator.integers(12, size=12))].mean()
        for _ in range(20000)
    ]
    ours = statistics.replicates(values, NAMES[:12], draws=20000)
    assert ours.mean() == pytest.approx(np.mean(looped), abs=0.005)
    assert ours.std() == pytest.approx(np.std(looped), rel=0.03)


def test_seeds_make_an_interval_wider_than_cases_alone():
    values = drawn(3, 12) + np.array([[0.2], [0.0], [-0.2]])
    both = statistics.interval(values, NAMES[:12])
    cases = statistics.interval(values.mean(axis=0, keepdims=True), NAMES[:12])
    assert both.high - both.low > 2 * (cases.high - cases.low)


def test_cases_of_one_subject_are_drawn_together():
    """Every case twice tells no more than every case once."""
    values = drawn(1, 10)
    doubled = np.repeat(values, 2, axis=1)
    subjects = [name for name in NAMES[:10] for _ in range(2)]
    once = statistics.replicates(values, NAMES[:10])
    assert np.allclose(statistics.replicates(doubled, subjects), once)
    independent = statistics.replicates(doubled, NAMES[:20])
    assert independent.std() < 0.8 * once.std()


def test_cases_without_a_value_are_left_out():
    values = drawn(2, 6)
    values[0, 1] = np.nan
    expected = np.mean([np.nanmean(values[0]), values[1].mean()])
    found = statistics.interval(values, NAMES[:6])
    assert found.mean == pytest.approx(expected)
    assert found.low < expected < found.high
    nothing = statistics.interval(np.full((2, 6), np.nan), NAMES[:6])
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_paired_test_is_the_enumeration_of_all_signs(seed):
    """P(W as far from its mean as observed), over the 2^n equally likely signs of the ranks."""
    difference = np.random.default_rng(seed).normal(0.3, 1, size=9)
    ranked = stats.rankdata(abs(difference))
    sums = np.array([ranked[np.array(signs)].sum() for signs in product((False, True), repeat=9)])
    far = abs(ranked[difference > 0].sum() - ranked.sum() / 2)
    exact = np.mean(abs(sums - ranked.sum() / 2) >= far - 1e-9)
    found = statistics.paired_test(difference[None], NAMES[:9])
    assert found.p == pytest.approx(exact)
    assert (found.better, found.worse) == ((difference > 0).sum(), (difference < 0).sum())


def test_the_smallest_p_is_that_of_differences_of_one_sign():
    found = statistics.paired_test(np.arange(1.0, 7)[None], NAMES[:6])
    assert found.p == found.smallest == 2 / 2**6


def test_equal_arms_do_not_differ():
    found = statistics.paired_test(np.zeros((3, 5)), NAMES[:5])
    assert (found.p, found.better, found.worse) == (1.0, 0, 0)


def test_more_seeds_are_not_more_subjects():
    differences = drawn(1, 8) - 0.75
    once = statistics.paired_test(differences, NAMES[:8])
    assert statistics.paired_test(np.repeat(differences, 5, axis=0), NAMES[:8]) == once


def test_better_is_smaller_where_the_measure_is_a_distance():
    found = statistics.paired_test(np.array([[-1.0, -2.0, 3.0]]), NAMES[:3], smaller_is_better=True)
    assert (found.better, found.worse) == (2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferronis(seed):
    """An adjusted p is the largest Bonferroni p of all sets of hypotheses that hold it."""
    p_values = list(np.random.default_rng(seed).uniform(0, 0.2, size=5).round(2))
    closed = [
        max(
            min(1.0, len(others) * min(p_values[i] for i in others))
            for size in range(1, 6)
            for others in combinations(range(5), size)
            if index in others
        )
        for index in range(5)
    ]
    assert statistics.holm(p_values) == pytest.approx(closed)


def test_holm_leaves_out_what_could_not_be_tested():
    assert statistics.holm([0.01, float("nan"), 0.04]) == pytest.approx(
        [0.02, float("nan"), 0.04], nan_ok=True
    )


def test_friedman_is_scipys():
    scores = np.random.default_rng(0).normal(size=(7, 4)) + np.arange(4) * 0.5
    found = statistics.ranks(scores)
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert sum(found.means) == pytest.approx(4 * 5 / 2)
    tied = scores.round(0)
    assert statistics.ranks(tied).p == pytest.approx(stats.friedmanchisquare(*tied.T).pvalue)


@pytest.mark.parametrize(("arms", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(arms, q):
    scores = np.random.default_rng(0).normal(size=(14, arms))
    assert statistics.ranks(scores).difference == pytest.approx(
        q * np.sqrt(arms * (arms + 1) / (6 * 14)), abs=1e-3
    )


def test_groups_are_the_maximal_ones_within_the_difference():
    means = np.array([3.9, 1.0, 2.0, 2.9])
    assert statistics._rank_cliques(means, 1.1) == [[1, 2], [2, 3], [3, 0]]
    assert statistics._rank_cliques(means, 2.0) == [[1, 2, 3], [2, 3, 0]]
    assert statistics._rank_cliques(means, 0.5) == []


def test_one_task_has_ranks_but_no_test():
    found = statistics.ranks(np.array([[0.5, 0.7, 0.6], [0.1, np.nan, 0.2]]))
    assert found.means == [3.0, 1.0, 2.0]
    assert found.blocks == 1
    assert np.isnan([found.p, found.difference]).all()
