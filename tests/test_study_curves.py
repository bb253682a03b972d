"""Convergence and data efficiency on curves whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnssl.study.report import curves
from nnssl.study.report.curves import NEVER, Curve
from nnssl.study.rows import EpochRow


def line(values: list[float], seconds: float = 36.0) -> Curve:
    """A curve as it is, not smoothed."""
    return Curve(np.array(values), np.arange(1, len(values) + 1) * seconds / 3600)


@pytest.mark.parametrize(("epochs", "reach"), [(1, 0), (20, 0), (99, 0), (100, 1), (1000, 10)])
def test_smoothing_is_the_mean_around_each_epoch(epochs, reach):
    values = np.random.default_rng(0).random(epochs)
    means = [values[max(i - reach, 0) : i + reach + 1].mean() for i in range(epochs)]
    assert curves.smooth(values) == pytest.approx(np.array(means))


def test_smoothing_does_not_lag():
    """Noise is averaged out, and a step stays where it is."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(1000)
    smooth = curves.smooth(np.where(np.arange(1000) < 300, 0.2, 0.8) + noise)
    assert abs((smooth >= 0.5).argmax() - 300) <= 2
    assert smooth[400:].std() < 0.04


def test_a_curve_counts_hours_and_bridges_epochs_without_a_dice():
    dice = [None, 0.4, None, 0.4]
    rows = [EpochRow(run="a", epoch=e, dice=d, seconds=1800) for e, d in enumerate(dice)]
    curve = Curve.of(rows)
    assert curve.hours.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert curve.dice == pytest.approx([0.0, 0.4, 0.4, 0.4])


def test_twice_as_fast_is_half_the_epochs():
    """Dice 1 - exp(-epoch / t) reaches a fraction of its end after t log(1 / (1 - fraction))
    epochs.
    """
    epochs = np.arange(1, 1001)
    slow, fast = (line(list(1 - np.exp(-epochs / t))) for t in (100, 50))
    for fraction, row in zip(curves.FRACTIONS, curves.convergence([fast], [slow]), strict=True):
        assert row.epochs == np.ceil(-50 * np.log(1 - fraction * slow.final))
        assert row.hours == pytest.approx(row.epochs / 100)
        assert row.epoch_ratio == row.hour_ratio == pytest.approx(0.5, abs=0.01)
        assert (row.reached, row.seeds) == (1, 1)


@pytest.mark.parametrize(("ours", "theirs", "ratio"), [(200, 100, 1.0), (None, 100, 0.5)])
def test_an_epoch_counts_by_its_iterations(ours, theirs, ratio):
    """Half as many epochs, each twice as long: the same training."""
    scratch = replace(line([0.25, 0.5, 0.75, 1.0]), iterations=theirs)
    arm = replace(line([0.5, 1.0]), iterations=ours)
    row = curves.convergence([arm], [scratch])[-1]
    assert (row.epochs, row.epoch_ratio) == (2, ratio)


def test_hours_count_the_arms_own_epochs():
    scratch, arm = line([0.5, 0.9, 1.0]), line([0.5, 0.9, 1.0], seconds=72)
    row = curves.convergence([arm], [scratch])[0]
    assert (row.epoch_ratio, row.hour_ratio) == (1.0, pytest.approx(2.0))


def test_what_is_not_reached_is_never_and_is_counted():
    scratch, weak, strong = line([0.5, 1.0]), line([0.5, 0.6]), line([1.0, 1.0])
    row = curves.convergence([weak, strong], [scratch])[0]
    assert (row.epochs, row.hours, row.reached, row.seeds) == (NEVER, NEVER, 1, 2)
    assert row.epoch_ratio == NEVER
    assert curves.convergence([weak, strong, strong], [scratch])[0].epochs == 1.0


def test_the_median_of_two_seeds_is_between_them():
    early, late, scratch = (line([0.0] * before + [1.0] * 50) for before in (4, 44, 9))
    row = curves.convergence([early, late], [scratch])[0]
    assert (row.epochs, row.hours) == (25.0, pytest.approx(0.25))
    assert row.epoch_ratio == 2.5
    assert curves.convergence([scratch], [early, late])[0].epoch_ratio == 0.4


def test_labels_saved_are_read_off_the_curve():
    scratch = [(2, 0.4), (8, 0.6), (32, 0.8)]
    arm = [(2, 0.6), (8, 0.8), (32, 0.9)]
    few, middle, many = curves.savings(scratch, arm)
    assert (few.needed, few.bound) == (2, "at most")
    assert (middle.needed, middle.bound, middle.saved) == (2, "", 6)
    assert (many.needed, many.fraction, many.bound) == (pytest.approx(8), pytest.approx(0.75), "")


def test_between_budgets_the_dice_is_linear_in_the_logarithm():
    (row,) = curves.savings([(16, 0.7)], [(1, 0.5), (16, 0.9)])
    assert row.needed == pytest.approx(4)


def test_where_more_labels_do_not_help_scratch_none_are_saved():
    found = curves.savings([(2, 0.5), (5, 0.6), (10, 0.55), (24, 0.7)], [(2, 0.6), (24, 0.8)])
    assert [(one.cases, one.bound) for one in found] == [(2, "at most"), (5, ""), (24, "")]


def test_a_worse_arm_needs_more_than_there_is():
    (row,) = curves.savings([(32, 0.8)], [(2, 0.3), (32, 0.7)])
    assert (row.needed, row.bound) == (32, "more than")


def test_scratch_saves_nothing_against_itself():
    points = [(2, 0.4), (8, 0.6), (32, 0.8)]
    assert [row.saved for row in curves.savings(points, points)] == pytest.approx([0, 0, 0])
