"""The attention distance of the heads of the finished runs' encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnssl.study.report import drawing
from nnssl.study.report.feature_reuse import (
    panels_by_figure,
    positions_in_description,
    stages_of,
)
from nnssl.study.report.results import Group, Results
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import AttentionRow, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Reach:
    """A group's mean attention distance, the mean over its seeds: mm [layers heads], NaN where a
    layer has no such head; uniform: [layers], that of even attention, NaN where it is not known.
    """

    group: Group
    mm: pd.DataFrame
    uniform: pd.Series

    @property
    def farthest(self) -> float:
        """mm"""
        return float(self.mm.max(axis=None))

    @property
    def rows(self) -> list[list[Cell]]:
        """Rows of the table, one per layer."""
        group_cells = (self.group.task, str(self.group.budget), self.group.arm)
        by_layer = zip(self.mm.index, self.mm.to_numpy(), self.uniform, strict=True)
        return [
            [*group_cells, layer, *_mean_and_ends(mm), float(even)] for layer, mm, even in by_layer
        ]


def _mean_and_ends(mm: np.ndarray) -> list[float]:
    """Mean, least and largest of those that are there."""
    return [float(np.nanmean(mm)), float(np.nanmin(mm)), float(np.nanmax(mm))]


def reaches(results: Results) -> list[Reach]:
    """By task, arm and budget, in the description's order."""
    found = grouped(results.attention, Group.of)
    ordered = sorted(found, key=_group_sort_key(results, found))
    return [_reach(group, found[group]) for group in ordered]


def _group_sort_key(results: Results, groups: Iterable[Group]) -> Callable[[Group], tuple]:
    budgets = [*results.budgets, *(group.budget for group in groups)]
    return lambda group: (
        *positions_in_description(results, group.task, group.arm),
        budgets.index(group.budget),
    )


def _reach(group: Group, rows: list[AttentionRow]) -> Reach:
    """rows: of all seeds."""
    table = pd.DataFrame(map(vars, rows))
    layers = sorted(table["layer"].unique(), key=_by_number)
    heads = range(1, table["head"].max() + 1)
    mm = table.pivot_table(index="layer", columns="head", values="mm")
    return Reach(group, mm.reindex(index=layers, columns=heads), _even(table).reindex(layers))


def _even(table: pd.DataFrame) -> pd.Series:
    """By layer; NaN where one seed does not know it."""
    uniform = table.astype({"uniform_mm": float}).groupby("layer")["uniform_mm"]
    return uniform.agg(lambda values: values.mean(skipna=False))


DISTANCES = Table(
    name="attention",
    title="Attention distance (mm)",
    note=(
        "Mean distance in mm from a token to what it attends to, by layer: the mean of the heads, "
        "and the heads with the shortest and the longest distance. Even: the distance of uniform "
        "attention to all tokens of the window; windows bound the distance of a head. Heads near "
        "even mix globally, heads far below it are local."
    ),
    columns=["task", "budget", "arm", "layer", "mean", "nearest head", "farthest head", "even"],
    formats=dict.fromkeys(["mean", "nearest head", "farthest head", "even"], ".2f"),
)


def distances(measured: list[Reach]) -> Table:
    return DISTANCES.of(row for reach in measured for row in reach.rows)


def plots(measured: list[Reach], results: Results, task: str) -> list[Figure]:
    """Figures of up to nine panels, one an arm and budget: a point a head along the layers."""
    here = [reach for reach in measured if reach.group.task == task]
    top = max((reach.farthest for reach in here), default=0.0)
    return [_attention_plot(part, results, top) for part in panels_by_figure(here)]


def _attention_plot(here: list[Reach], results: Results, top: float) -> Figure:
    drawn, grid = drawing.panels(len(here))
    styles = drawing.style(results.arms)
    for axes, reach in zip(grid, here, strict=True):
        _plot_heads(axes, reach, styles.get(reach.group.arm, {}).get("color"))
        _even_attention(axes, reach)
        _name_stages(axes, reach)
        axes.set_title(f"{reach.group.arm}, {reach.group.budget}", fontsize=10)
        axes.set_ylabel("mm", fontsize=9)
        axes.set(ylim=(0, top * 1.25))
    return drawn


def _plot_heads(axes: Axes, reach: Reach, colour: str | None) -> None:
    along = np.arange(len(reach.mm))
    for head in reach.mm.to_numpy().T:
        axes.plot(along, head, ls="", marker="o", ms=4, alpha=0.7, color=colour)


def _even_attention(axes: Axes, reach: Reach) -> None:
    even = reach.uniform.to_numpy()
    axes.plot(np.arange(len(even)), even, color=drawing.GREY, lw=1, drawstyle="steps-mid")


def _name_stages(axes: Axes, reach: Reach) -> None:
    stages, starts = stages_of(reach.mm.index.tolist())
    axes.set_xticks(starts, stages, fontsize=8)


def _by_number(layer: str) -> list[tuple[int, int, str]]:
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in layer.split()]
