"""The figures of scores, ranks and convergence. Each function returns a figure, or None where there
is nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnssl.study.report import drawing
from nnssl.study.report.curves import FRACTIONS, Curve, mean_final
from nnssl.study.report.efficiency import curves_of
from nnssl.study.report.results import Group, Results
from nnssl.study.report.scores import Comparison, Ranking
from nnssl.study.report.statistics import Interval, Ranks
from nnssl.study.rows import BASELINE, Budget

MARKS = 6  # on a training's curve, so that colour is not all that tells arms apart

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure


def against_cases(results: Results) -> Figure | None:
    """Dice against the number of labelled cases, a panel per task, with the intervals."""
    figure, grid = drawing.panels(len(results.tasks))
    handles: dict[str, ErrorbarContainer] = {}
    for axes, task in zip(grid, results.tasks, strict=True):
        handles |= _against_cases(axes, results, task)
    if not handles:
        return None
    drawing.legend(figure, handles)
    return figure


def _against_cases(axes: Axes, results: Results, task: str) -> dict[str, ErrorbarContainer]:
    """The points of each arm."""
    groups = {arm: results.scored_groups(task, arm) for arm in results.arms}
    handles = {arm: _errorbar(axes, results, found) for arm, found in groups.items() if found}
    _cases_axis(axes, [results.cases_of(g) for found in groups.values() for g in found])
    drawing.label(axes, task, "labelled cases", "Dice")
    return handles


def _cases_axis(axes: Axes, cases: list[float]) -> None:
    cases = list(dict.fromkeys(cases))
    cases = [number for number in cases if number > 0]  # not where it is unknown
    axes.set_xscale("log")
    axes.set_xticks(cases, [f"{n:g}" for n in cases])
    axes.minorticks_off()


def _errorbar(axes: Axes, results: Results, groups: list[Group]) -> ErrorbarContainer:
    """Draw the points of one arm, side by side with those of the others."""
    intervals = [results.scores(group, "dice").interval for group in groups]
    arm = groups[0].arm
    style = drawing.style(results.arms)[arm]
    return axes.errorbar(
        np.array([results.cases_of(group) for group in groups]) * _aside(results, arm),
        [i.mean for i in intervals],
        _bar_lengths(intervals),
        capsize=2,
        lw=1.4,
        ms=5,
        color=style["color"],
        marker=style["marker"],
    )


def _bar_lengths(intervals: list[Interval]) -> list[list[float]]:
    """Below and above the means."""
    below = [i.mean - min(i.low, i.mean) for i in intervals]
    above = [max(i.high, i.mean) - i.mean for i in intervals]
    return [below, above]


def _aside(results: Results, arm: str) -> float:
    """A factor by which an arm's points are moved, so that none covers another's."""
    return 1.03 ** (results.arms.index(arm) - len(results.arms) / 2)


def differences(made_comparisons: list[Comparison], results: Results) -> Figure | None:
    """Dice minus scratch's with its interval, a panel per task; filled where it differs."""
    shown = _dice_by_task(made_comparisons, results.tasks)
    if not shown:
        return None
    figure, grid = drawing.panels(len(shown), height=0.9 + 0.2 * max(map(len, shown)))
    for axes, here in zip(grid, shown, strict=True):
        _differences(axes, here, drawing.style(results.arms))
    return figure


def _dice_by_task(comparisons: list[Comparison], tasks: list[str]) -> list[list[Comparison]]:
    """The comparisons of Dice, of each task that has any."""
    dice = [comparison for comparison in comparisons if comparison.measure == "dice"]
    by_task = [[c for c in dice if c.group.task == task] for task in tasks]
    return [found for found in by_task if found]


def _differences(axes: Axes, here: list[Comparison], styles: dict[str, dict[str, str]]) -> None:
    """Draw the panel of one task."""
    for row, comparison in enumerate(here):
        _difference(axes, comparison, row, styles)
    axes.axvline(0, color=drawing.GREY, lw=0.8)
    axes.set_yticks(range(len(here)), [f"{c.group.arm}, {c.group.budget}" for c in here])
    axes.set_ylim(len(here) - 0.5, -0.5)  # the first on top, none on the frame
    axes.set_title(here[0].group.task, fontsize=10)
    axes.set_xlabel("Dice minus scratch's", fontsize=9)


def _difference(
    axes: Axes, comparison: Comparison, row: int, styles: dict[str, dict[str, str]]
) -> None:
    colour, difference = styles[comparison.group.arm]["color"], comparison.difference
    axes.plot([difference.low, difference.high], [row, row], color=colour, lw=1.6)
    face, marker = colour if comparison.differs else "white", styles[comparison.group.arm]["marker"]
    axes.plot(difference.mean, row, marker=marker, mec=colour, mfc=face, ms=6)


def critical_difference(ranking: Ranking, results: Results) -> Figure | None:
    """Demsar's diagram: arms along the mean rank, a bar over those that do not differ
    significantly.
    """
    overall, count = ranking.overall, len(ranking.arms)
    if count < 2 or not overall.blocks:
        return None
    half, depth = -(-count // 2), 0.6 + 0.35 * len(overall.groups)
    figure = drawing.figure(drawing.WIDTH * 0.75, 1.2 + 0.3 * half + 0.15 * len(overall.groups))
    axes = figure.subplots()
    _arms(axes, ranking, drawing.style(results.arms), depth)
    _bars(axes, overall)
    if overall.is_tested:
        _ruler(axes, overall.difference, count - 1)
    _ranks_axis(axes, count)
    axes.set(xlim=(-1.2, count + 2.2), ylim=(depth + 0.8 * half, -1.6))
    axes.axis("off")
    return figure


def _bars(axes: Axes, ranks: Ranks) -> None:
    for number, group in enumerate(ranks.groups):
        ends = [ranks.means[group[0]] - 0.04, ranks.means[group[-1]] + 0.04]
        axes.plot(ends, [0.3 + 0.35 * number] * 2, color="black", lw=4, solid_capstyle="butt")


def _ranks_axis(axes: Axes, count: int) -> None:
    axes.plot([1, count], [0, 0], color="black", lw=1)
    for rank in range(1, count + 1):
        _rank(axes, rank)


def _rank(axes: Axes, rank: int) -> None:
    """A tick with its number."""
    axes.plot([rank, rank], [0, -0.15], color="black", lw=1)
    axes.text(rank, -0.25, str(rank), ha="center", va="bottom", fontsize=9)


def _arms(axes: Axes, ranking: Ranking, styles: dict[str, dict[str, str]], depth: float) -> None:
    """Their names, the better half on the left."""
    order = np.argsort(ranking.overall.means, kind="stable")
    half = -(-len(order) // 2)
    for position, number in enumerate(order):
        arm, rank, left = ranking.arms[number], ranking.overall.means[number], position < half
        level = depth + (position if left else len(order) - 1 - position) * 0.8
        side, colour = 0.6 if left else len(order) + 0.4, styles[arm]["color"]
        axes.plot([rank, rank, side], [0, level, level], color=colour, lw=1.2)
        text = f" {arm}  {rank:.2f} " if left else f" {rank:.2f}  {arm} "
        ha = "right" if left else "left"
        axes.text(side, level, text, ha=ha, va="center", fontsize=10, color=colour)


def _ruler(axes: Axes, difference: float, longest: int) -> None:
    span = min(difference, longest)
    more = "" if span == difference else " (wider than all ranks)"
    axes.plot([1, 1 + span], [-0.9, -0.9], color="black", lw=1.5, marker="|")
    text = f"critical difference {difference:.2f}{more}"
    axes.text(1 + span / 2, -1.05, text, ha="center", fontsize=9)


def training(results: Results, task: str) -> Figure | None:
    """Validation Dice by epoch, mean and range over the seeds, for up to three budgets."""
    chosen = _ends_and_middle([b for b in results.budgets if _curves(results, task, b)])
    if not chosen:
        return None
    figure, grid = drawing.panels(len(chosen))
    handles: dict[str, Artist] = {}
    for axes, budget in zip(grid, chosen, strict=True):
        handles |= _plot_training_curves(
            axes, _curves(results, task, budget), drawing.style(results.arms)
        )
        drawing.label(axes, f"{task}, budget {budget}", "epoch", "validation Dice")
        axes.locator_params(axis="x", integer=True)
    drawing.legend(figure, handles)
    return figure


def _ends_and_middle(budgets: list[Budget]) -> list[Budget]:
    """The fewest, a middle one and the most, each once."""
    last = len(budgets) - 1
    return [b for index, b in enumerate(budgets) if index in (0, len(budgets) // 2, last)]


def _plot_training_curves(
    axes: Axes, curves: dict[str, list[Curve]], styles: dict[str, dict[str, str]]
) -> dict[str, Artist]:
    """The line of each arm."""
    lines = {}
    for arm, found in curves.items():
        lines[arm] = _band(axes, found, styles[arm])
        if arm == BASELINE:
            _targets(axes, found)
    return lines


def _curves(results: Results, task: str, budget: Budget) -> dict[str, list[Curve]]:
    """By arm, of those that have any."""
    found = {arm: curves_of(results, Group(task, arm, budget)) for arm in results.arms}
    return {arm: list(curves.values()) for arm, curves in found.items() if curves}


def _band(axes: Axes, curves: list[Curve], style: dict[str, str]) -> Artist:
    """Mean and range of one arm, as far as all of its runs go; the line of the mean."""
    length = min(len(curve.dice) for curve in curves)
    stack = np.stack([curve.dice[:length] for curve in curves])
    epochs, mean = np.arange(1, length + 1), stack.mean(axis=0)
    every = max(1, length // MARKS)
    (line,) = axes.plot(
        epochs, mean, color=style["color"], marker=style["marker"], markevery=every, ms=4, lw=1.5
    )
    if len(stack) > 1:
        _shade_range(axes, stack, style["color"])
    return line


def _shade_range(axes: Axes, stack: np.ndarray, colour: str) -> None:
    """stack: [curves epochs]."""
    epochs, low, high = np.arange(1, stack.shape[1] + 1), stack.min(axis=0), stack.max(axis=0)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)


def _targets(axes: Axes, scratch: list[Curve]) -> None:
    """Fractions of its final Dice."""
    final = mean_final(scratch)
    for number, fraction in enumerate(FRACTIONS):
        _target(axes, fraction * final, f"{fraction:.0%}", across=0.02 + 0.07 * number)


def _target(axes: Axes, dice: float, text: str, across: float) -> None:
    """across: where the text begins, as a fraction of the panel; side by side, none is hidden."""
    axes.axhline(dice, color=drawing.GREY, lw=0.7, ls=":")
    transform = axes.get_yaxis_transform()
    axes.text(across, dice, text, transform=transform, fontsize=7, color=drawing.GREY, va="bottom")
