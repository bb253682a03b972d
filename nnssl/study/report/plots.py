"""The figures of scores, ranks and convergence. Each function returns a figure, or None where there
is nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnssl.study.report import drawing, statistics
from nnssl.study.report.curves import FRACTIONS, Curve
from nnssl.study.report.efficiency import curves_of
from nnssl.study.report.results import BASELINE, Group, Results
from nnssl.study.report.scores import Comparison, Ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUDGETS_SHOWN = 3  # columns of the figure of convergence: the fewest, a middle one, the most


def against_cases(results: Results) -> Figure | None:
    """Dice against the number of labelled cases, a panel per task, with the intervals."""
    made, grid = drawing.panels(len(results.tasks))
    look, handles = drawing.style(results.arms), {}
    for axes, task in zip(grid, results.tasks, strict=True):
        ticks = {}
        for arm in results.arms:
            groups = [
                g for g in (Group(task, arm, b) for b in results.budgets) if g in results.done
            ]
            scores = [results.scores(g, "dice") for g in groups]
            found = [
                (results.cases_of(g), statistics.interval(s.values, s.subjects))
                for g, s in zip(groups, scores, strict=True)
            ]
            found = [
                (cases, interval) for cases, interval in found if interval.mean == interval.mean
            ]
            if not found:
                continue
            cases, intervals = zip(*found, strict=True)
            ticks.update({n: f"{n:g}" for n in cases})
            low = [i.mean - min(i.low, i.mean) for i in intervals]
            high = [max(i.high, i.mean) - i.mean for i in intervals]
            # side by side
            moved = np.array(cases) * 1.03 ** (results.arms.index(arm) - len(results.arms) / 2)
            handles[arm] = axes.errorbar(
                moved,
                [i.mean for i in intervals],
                [low, high],
                capsize=2,
                lw=1.4,
                ms=5,
                **look[arm],
            )
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("labelled cases", fontsize=9)
        axes.set_ylabel("Dice", fontsize=9)
    if not handles:
        return None
    drawing.legend(made, handles)
    return made


def differences(made_comparisons: list[Comparison], results: Results) -> Figure | None:
    """Dice minus scratch's with its interval, a panel per task; filled where it differs after
    correction.
    """
    shown = [c for c in made_comparisons if c.measure == "dice"]
    tasks = [task for task in results.tasks if any(c.group.task == task for c in shown)]
    if not tasks:
        return None
    rows = max(sum(c.group.task == task for c in shown) for task in tasks)
    made, grid = drawing.panels(len(tasks), height=0.9 + 0.2 * rows)
    look = drawing.style(results.arms)
    for axes, task in zip(grid, tasks, strict=True):
        here = [c for c in shown if c.group.task == task]
        for place, c in enumerate(here):
            colour = look[c.group.arm]["color"]
            axes.plot([c.difference.low, c.difference.high], [place, place], color=colour, lw=1.6)
            face = colour if c.differs else "white"
            axes.plot(
                c.difference.mean,
                place,
                marker=look[c.group.arm]["marker"],
                mec=colour,
                mfc=face,
                ms=6,
            )
        axes.axvline(0, color=drawing.GREY, lw=0.8)
        axes.set_yticks(range(len(here)), [f"{c.group.arm}, {c.group.budget}" for c in here])
        axes.invert_yaxis()
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("Dice minus scratch's", fontsize=9)
    return made


def critical_difference(ranking: Ranking, results: Results) -> Figure | None:
    """Demsar's diagram: arms along the mean rank, a bar over those that cannot be told apart."""
    overall = ranking.overall
    if len(ranking.arms) < 2 or not overall.blocks:
        return None
    order = np.argsort(overall.means, kind="stable")
    half = -(-len(order) // 2)
    made = drawing.figure(drawing.WIDTH * 0.75, 1.2 + 0.3 * half + 0.15 * len(overall.groups))
    axes, look = made.subplots(), drawing.style(results.arms)
    depth = 0.6 + 0.35 * len(overall.groups)
    for place, arm in enumerate(order):
        left, rank = place < half, overall.means[arm]
        level = depth + (place if left else len(order) - 1 - place) * 0.8
        side = 0.6 if left else len(order) + 0.4
        colour = look[ranking.arms[arm]]["color"]
        axes.plot([rank, rank, side], [0, level, level], color=colour, lw=1.2)
        text = f"{ranking.arms[arm]}  {rank:.2f}" if left else f"{rank:.2f}  {ranking.arms[arm]}"
        axes.text(
            side,
            level,
            f" {text} ",
            ha="right" if left else "left",
            va="center",
            fontsize=10,
            color=colour,
        )
    for number, group in enumerate(overall.groups):
        ends = [overall.means[group[0]] - 0.04, overall.means[group[-1]] + 0.04]
        axes.plot(ends, [0.3 + 0.35 * number] * 2, color="black", lw=4, solid_capstyle="butt")
    if overall.difference == overall.difference:
        span = min(overall.difference, len(order) - 1)
        more = "" if span == overall.difference else " (wider than all ranks)"
        axes.plot([1, 1 + span], [-0.9, -0.9], color="black", lw=1.5, marker="|")
        axes.text(
            1 + span / 2,
            -1.05,
            f"critical difference {overall.difference:.2f}{more}",
            ha="center",
            fontsize=9,
        )
    axes.plot([1, len(order)], [0, 0], color="black", lw=1)
    for rank in range(1, len(order) + 1):
        axes.plot([rank, rank], [0, -0.15], color="black", lw=1)
        axes.text(rank, -0.25, str(rank), ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-1.2, len(order) + 2.2), ylim=(depth + 0.8 * half, -1.6))
    axes.axis("off")
    return made


def training(results: Results, task: str) -> Figure | None:
    """Smoothed validation Dice by epoch, mean and range over the seeds, for up to three budgets."""
    there = [
        b
        for b in results.budgets
        if any(curves_of(results, Group(task, arm, b)) for arm in results.arms)
    ]
    if not there:
        return None
    chosen = sorted({0, len(there) // 2, len(there) - 1})[:BUDGETS_SHOWN]
    made, grid = drawing.panels(len(chosen))
    look, handles = drawing.style(results.arms), {}
    for axes, budget in zip(grid, (there[place] for place in chosen), strict=True):
        for arm in results.arms:
            curves = curves_of(results, Group(task, arm, budget))
            if not curves:
                continue
            stack = _together(curves)
            epochs = np.arange(1, stack.shape[1] + 1)
            (handles[arm],) = axes.plot(
                epochs, stack.mean(axis=0), color=look[arm]["color"], lw=1.5
            )
            if len(stack) > 1:
                axes.fill_between(
                    epochs,
                    stack.min(axis=0),
                    stack.max(axis=0),
                    color=look[arm]["color"],
                    alpha=0.15,
                    lw=0,
                )
            if arm == BASELINE:
                for fraction in FRACTIONS:
                    target = fraction * float(np.mean([curve.final for curve in curves]))
                    axes.axhline(target, color=drawing.GREY, lw=0.7, ls=":")
                    axes.text(
                        1, target, f"{fraction:.0%}", fontsize=7, color=drawing.GREY, va="bottom"
                    )
        axes.set_title(f"{task}, budget {budget}", fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel("validation Dice, smoothed", fontsize=9)
    drawing.legend(made, handles)
    return made


def _together(curves: list[Curve]) -> np.ndarray:
    """[runs epochs], as far as all of them go."""
    length = min(len(curve.dice) for curve in curves)
    return np.stack([curve.dice[:length] for curve in curves])
