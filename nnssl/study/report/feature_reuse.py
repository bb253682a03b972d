"""Feature reuse: CKA of encoders by stage and block, and how far their heads look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnssl.study.report import drawing
from nnssl.study.report.results import Group, Results
from nnssl.study.report.tables import Table
from nnssl.study.rows import AttentionRow, CkaRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS_A_FIGURE = 9


@dataclass(frozen=True)
class Pair:
    """CKA of two encoders in a task, the mean over the seeds: values [rows columns], NaN where
    undefined.
    """

    task: str
    first: str
    second: str
    values: pd.DataFrame
    seeds: int
    volumes: int

    def same(self) -> dict[str, float]:
        """The CKA of each layer with its like in the other encoder."""
        both = [name for name in self.values.index if name in self.values.columns]
        values = self.values.loc[both, both].to_numpy().diagonal()
        return dict(zip(both, values.tolist(), strict=True))


def pairs(results: Results) -> list[Pair]:
    """By task and arm, in the description's order."""
    found: dict[tuple, list[CkaRow]] = {}
    for row in results.cka:
        key = (row.task, row.first, row.second, tuple(row.rows), tuple(row.columns))
        found.setdefault(key, []).append(row)
    return sorted(map(_pair, found.values()), key=lambda pair: _order(results, pair))


def _pair(seeds: list[CkaRow]) -> Pair:
    one = seeds[0]
    mean = np.array([row.values for row in seeds], dtype=float).mean(axis=0)
    values = pd.DataFrame(mean, index=one.rows, columns=one.columns)
    volumes = sum(row.volumes for row in seeds)
    return Pair(one.task, one.first, one.second, values, len(seeds), volumes)


def _order(results: Results, pair: Pair) -> tuple:
    """By task, then by the arm of the first encoder, as `<arm> <budget>` names it; a pretrained one
    goes first.
    """
    arm, _, budget = pair.first.rpartition(" ")
    places = _place(results.tasks, pair.task), _place(results.arms, arm)
    return (*places, budget != "pretrained", pair.first, pair.second)


def similarity(made: list[Pair]) -> Table:
    """By stage: the mean over its blocks of the CKA with the same block."""
    stages = list(dict.fromkeys(stage_of(name) for pair in made for name in pair.values.index))
    rows = [
        [pair.task, pair.first, pair.second, pair.seeds, *_by_stage(pair, stages)] for pair in made
    ]
    note = (
        "Linear CKA, unbiased, of the same layers of two encoders on the same places of the same "
        "scans, the mean over a stage's blocks: 1 is the same up to rotation and scale, 0 is "
        "unrelated. High between pretrained and fine-tuned: the features were reused; low: they "
        "were learnt again. What a pair of random starts has is what architecture and data alone "
        "explain."
    )
    columns = ["task", "first", "second", "seeds", *stages]
    return Table("cka", "Feature reuse: CKA", note, columns, rows)


def _by_stage(pair: Pair, stages: list[str]) -> list[float | None]:
    same = pair.same().items()
    of_stage = [[v for name, v in same if stage_of(name) == stage] for stage in stages]
    return [float(np.mean(values)) if values else None for values in of_stage]


def layers(made: list[Pair]) -> Table:
    """Every value of every heat map."""
    rows = [
        [pair.task, pair.first, pair.second, layer, other, float(value)]
        for pair in made
        for layer, row in pair.values.iterrows()
        for other, value in row.items()
    ]
    columns = ["task", "first", "second", "layer", "other layer", "CKA"]
    return Table("cka_layers", "CKA by layer", "", columns, rows)


def stage_of(layer: str) -> str:
    """`stage 3 block 7` is of `stage 3`."""
    return layer.split(" block ")[0]


def heat_maps(made: list[Pair], task: str) -> list[Figure]:
    """Figures of up to nine maps of a task's pairs; lines part the stages."""
    return list(map(_heat_maps, _parts([pair for pair in made if pair.task == task])))


def _parts(panels: list) -> list[list]:
    """As many as a figure holds."""
    return [panels[i : i + MAPS_A_FIGURE] for i in range(0, len(panels), MAPS_A_FIGURE)]


def _heat_maps(shown: list[Pair]) -> Figure:
    made, grid = drawing.panels(len(shown), height=3.3)
    for axes, pair in zip(grid, shown, strict=True):
        image = axes.imshow(
            pair.values, vmin=0, vmax=1, cmap="viridis", origin="lower", interpolation="nearest"
        )
        _part_stages(axes, pair)
        axes.set_title(f"{pair.task}, mean of {pair.seeds} seed(s)", fontsize=9)
        axes.set_xlabel(pair.second, fontsize=9)
        axes.set_ylabel(pair.first, fontsize=9)
    made.colorbar(image, ax=grid, shrink=0.6, label="CKA")
    return made


def _part_stages(axes: Axes, pair: Pair) -> None:
    """A tick in the middle of each stage, and white lines between them."""
    for names, ticks, line in (
        (pair.values.columns.tolist(), axes.set_xticks, axes.axvline),
        (pair.values.index.tolist(), axes.set_yticks, axes.axhline),
    ):
        stages, starts = _stages(names)
        ends = [*starts[1:], len(names)]
        middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        ticks(middles, [_short(stage) for stage in stages])
        for start in starts[1:]:
            line(start - 0.5, color="white", lw=0.8)


def _stages(layers: Sequence[str]) -> tuple[list[str], list[int]]:
    """The stages of some layers, one after the other, and where each begins."""
    of = [stage_of(name) for name in layers]
    starts = [n for n, stage in enumerate(of) if n == 0 or stage != of[n - 1]]
    return [of[n] for n in starts], starts


def _short(stage: str) -> str:
    return stage.removeprefix("stage ") if stage.startswith("stage ") else "patch"


@dataclass(frozen=True)
class Reach:
    """A group's mean attention distance, the mean over its seeds: mm [layers heads], NaN where a
    layer has no such head; uniform: [layers], that of even attention, NaN where it is not known.
    """

    group: Group
    mm: pd.DataFrame
    uniform: pd.Series


def reaches(results: Results) -> list[Reach]:
    found: dict[Group, list[AttentionRow]] = {}
    for row in results.attention:
        found.setdefault(Group(row.task, row.arm, row.budget), []).append(row)
    made = [_reach(group, pd.DataFrame(map(vars, rows))) for group, rows in found.items()]
    budgets = [*results.budgets, *(reach.group.budget for reach in made)]

    def order(reach: Reach) -> tuple:
        group = reach.group
        places = _place(results.tasks, group.task), _place(results.arms, group.arm)
        return (*places, budgets.index(group.budget))

    return sorted(made, key=order)


def _reach(group: Group, rows: pd.DataFrame) -> Reach:
    """rows: layer, head, mm and uniform_mm, by seed."""
    layers = sorted(rows["layer"].unique(), key=_by_number)
    heads = range(1, rows["head"].max() + 1)
    mm = rows.pivot_table(index="layer", columns="head", values="mm")
    uniform = rows.astype({"uniform_mm": float}).groupby("layer")["uniform_mm"]
    even = uniform.agg(lambda values: values.mean(skipna=False))
    return Reach(group, mm.reindex(index=layers, columns=heads), even.reindex(layers))


DISTANCES = Table(
    name="attention",
    title="Attention distance (mm)",
    note=(
        "Mean distance in mm from a token to what it attends to, by layer: the mean of the heads, "
        "the nearest- and the farthest-looking head. Even: what attention to all tokens of the "
        "window alike would give; windows bound how far a head can look. Heads near even mix, "
        "heads far below it are local."
    ),
    columns=["task", "budget", "arm", "layer", "mean", "nearest head", "farthest head", "even"],
    formats=dict.fromkeys(["mean", "nearest head", "farthest head", "even"], ".2f"),
)


def distances(made: list[Reach]) -> Table:
    rows = [
        [
            *(reach.group.task, str(reach.group.budget), reach.group.arm, layer),
            *(float(np.nanmean(mm)), float(np.nanmin(mm)), float(np.nanmax(mm)), float(even)),
        ]
        for reach in made
        for layer, mm, even in zip(reach.mm.index, reach.mm.to_numpy(), reach.uniform, strict=True)
    ]
    return DISTANCES.of(rows)


def attention_plots(made: list[Reach], results: Results, task: str) -> list[Figure]:
    """Figures of up to nine panels, one an arm and budget: a point a head along the layers."""
    here = [reach for reach in made if reach.group.task == task]
    top = max((float(reach.mm.max(axis=None)) for reach in here), default=0.0)
    return [_attention_plot(part, results, top) for part in _parts(here)]


def _attention_plot(here: list[Reach], results: Results, top: float) -> Figure:
    drawn, grid = drawing.panels(len(here))
    look = drawing.style(results.arms)
    for axes, reach in zip(grid, here, strict=True):
        _heads(axes, reach, look.get(reach.group.arm, {}).get("color"))
        axes.set(ylim=(0, top * 1.25))
        axes.set_title(f"{reach.group.arm}, {reach.group.budget}", fontsize=10)
        axes.set_ylabel("mm", fontsize=9)
    return drawn


def _heads(axes: Axes, reach: Reach, colour: str | None) -> None:
    along = np.arange(len(reach.mm))
    for head in reach.mm.to_numpy().T:
        axes.plot(along, head, ls="", marker="o", ms=4, alpha=0.7, color=colour)
    even = reach.uniform.to_numpy()
    axes.plot(along, even, color=drawing.GREY, lw=1, drawstyle="steps-mid")
    stages, starts = _stages(reach.mm.index.tolist())
    axes.set_xticks(starts, stages, fontsize=8)


def _by_number(layer: str) -> list[tuple[int, int, str]]:
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in layer.split()]


def _place(names: list[str], name: str) -> tuple[int, str]:
    return (names.index(name), "") if name in names else (len(names), name)
