"""Feature reuse: CKA of encoders by stage and block, and how far their heads look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nnssl.study.report import drawing
from nnssl.study.report.results import Group, Results
from nnssl.study.report.tables import Table

if TYPE_CHECKING:
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
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    seeds: int
    volumes: int

    def same(self) -> dict[str, float]:
        """The CKA of each layer with its like in the other encoder."""
        both = [
            (name, self.rows.index(name), self.columns.index(name))
            for name in self.rows
            if name in self.columns
        ]
        return {name: float(self.values[row, column]) for name, row, column in both}


def pairs(results: Results) -> list[Pair]:
    """By task and arm, in the description's order."""
    found: dict[tuple, list[dict]] = {}
    for row in results.cka:
        key = (row["task"], row["first"], row["second"], tuple(row["rows"]), tuple(row["columns"]))
        found.setdefault(key, []).append(row)
    made = []
    for (task, first, second, rows, columns), seeds in found.items():
        values = np.array([row["values"] for row in seeds], dtype=float).mean(axis=0)
        volumes = sum(row.get("volumes", 0) for row in seeds)
        made.append(
            Pair(task, first, second, list(rows), list(columns), values, len(seeds), volumes)
        )
    return sorted(made, key=lambda pair: (_place(results.tasks, pair.task), *_order(results, pair)))


def _order(results: Results, pair: Pair) -> tuple:
    """By the arm of the first encoder, as `<arm> <budget>` names it; a pretrained one goes
    first.
    """
    arm, _, budget = pair.first.rpartition(" ")
    return _place(results.arms, arm), budget != "pretrained", pair.first, pair.second


def similarity(made: list[Pair]) -> Table:
    """By stage: the mean over its blocks of the CKA with the same block."""
    stages = list(dict.fromkeys(stage_of(name) for pair in made for name in pair.rows))
    rows = []
    for pair in made:
        same = pair.same()
        by_stage = [[v for name, v in same.items() if stage_of(name) == stage] for stage in stages]
        means = [float(np.mean(values)) if values else None for values in by_stage]
        rows.append([pair.task, pair.first, pair.second, pair.seeds, *means])
    note = (
        "Linear CKA, unbiased, of the same layers of two encoders on the same places of the same "
        "scans, the mean over a stage's blocks: 1 is the same up to rotation and scale, 0 is "
        "unrelated. High between pretrained and fine-tuned: the features were reused; low: they "
        "were learnt again. What a pair of random starts has is what architecture and data alone "
        "explain."
    )
    return Table(
        "cka", "Feature reuse: CKA", note, ["task", "first", "second", "seeds", *stages], rows
    )


def layers(made: list[Pair]) -> Table:
    """Every value of every heat map."""
    rows = [
        [pair.task, pair.first, pair.second, row, column, float(pair.values[i, j])]
        for pair in made
        for i, row in enumerate(pair.rows)
        for j, column in enumerate(pair.columns)
    ]
    return Table(
        "cka_layers",
        "CKA by layer",
        "",
        ["task", "first", "second", "layer", "other layer", "CKA"],
        rows,
    )


def stage_of(layer: str) -> str:
    """`stage 3 block 7` is of `stage 3`."""
    return layer.split(" block ")[0]


def heat_maps(made: list[Pair], task: str) -> list:
    """Figures of up to nine maps of a task's pairs; lines part the stages."""
    here = [pair for pair in made if pair.task == task]
    return [_heat_maps(here[i : i + MAPS_A_FIGURE]) for i in range(0, len(here), MAPS_A_FIGURE)]


def _heat_maps(shown: list[Pair]) -> Figure:
    made, grid = drawing.panels(len(shown), height=3.3)
    for axes, pair in zip(grid, shown, strict=True):
        image = axes.imshow(
            pair.values, vmin=0, vmax=1, cmap="viridis", origin="lower", interpolation="nearest"
        )
        for names, ticks, line in (
            (pair.columns, axes.set_xticks, axes.axvline),
            (pair.rows, axes.set_yticks, axes.axhline),
        ):
            stages = [stage_of(name) for name in names]
            starts = [
                place
                for place, stage in enumerate(stages)
                if place == 0 or stage != stages[place - 1]
            ]
            ends = [*starts[1:], len(names)]
            ticks(
                [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)],
                [_short(stages[a]) for a in starts],
            )
            for start in starts[1:]:
                line(start - 0.5, color="white", lw=0.8)
        axes.set_title(f"{pair.task}, mean of {pair.seeds} seed(s)", fontsize=9)
        axes.set_xlabel(pair.second, fontsize=9)
        axes.set_ylabel(pair.first, fontsize=9)
    made.colorbar(image, ax=grid, shrink=0.6, label="CKA")
    return made


def _short(stage: str) -> str:
    return stage.removeprefix("stage ") if stage.startswith("stage ") else "patch"


@dataclass(frozen=True)
class Reach:
    """A group's mean attention distance: mm [layers heads], the mean over its seeds; NaN where a
    layer has no head.
    """

    group: Group
    layers: list[str]
    mm: np.ndarray
    uniform: np.ndarray


def reaches(results: Results) -> list[Reach]:
    found: dict[Group, dict[tuple[str, int], list[dict]]] = {}
    for row in results.attention:
        group = Group(row["task"], row["arm"], row["budget"])
        found.setdefault(group, {}).setdefault((row["layer"], row["head"]), []).append(row)
    made = []
    for group, cells in found.items():
        names = sorted({layer for layer, _ in cells}, key=_by_number)
        mm = np.full((len(names), max(head for _, head in cells)), np.nan)
        uniform = np.full(len(names), np.nan)
        for (layer, head), rows in cells.items():
            mm[names.index(layer), head - 1] = np.mean([row["mm"] for row in rows])
            if all("uniform_mm" in row for row in rows):
                uniform[names.index(layer)] = np.mean([row["uniform_mm"] for row in rows])
        made.append(Reach(group, names, mm, uniform))
    budgets = [*results.budgets, *(r.group.budget for r in made)]
    return sorted(
        made,
        key=lambda r: (
            _place(results.tasks, r.group.task),
            _place(results.arms, r.group.arm),
            budgets.index(r.group.budget),
        ),
    )


def distances(made: list[Reach]) -> Table:
    rows = [
        [
            r.group.task,
            str(r.group.budget),
            r.group.arm,
            layer,
            float(np.nanmean(mm)),
            float(np.nanmin(mm)),
            float(np.nanmax(mm)),
            float(even),
        ]
        for r in made
        for layer, mm, even in zip(r.layers, r.mm, r.uniform, strict=True)
    ]
    note = (
        "Mean distance in mm from a token to what it attends to, by layer: the mean of the heads, "
        "the nearest- and the farthest-looking head. Even: what attention to all tokens of the "
        "window alike would give; windows bound how far a head can look. Heads near even mix, "
        "heads far below it are local."
    )
    columns = ["task", "budget", "arm", "layer", "mean", "nearest head", "farthest head", "even"]
    return Table(
        "attention",
        "Attention distance (mm)",
        note,
        columns,
        rows,
        dict.fromkeys(columns[4:], ".2f"),
    )


def attention_plots(made: list[Reach], results: Results, task: str) -> list:
    """Figures of up to nine panels, one an arm and budget: a point a head along the layers."""
    here = [reach for reach in made if reach.group.task == task]
    top = max((float(np.nanmax(reach.mm)) for reach in here), default=0.0)
    parts = (here[i : i + MAPS_A_FIGURE] for i in range(0, len(here), MAPS_A_FIGURE))
    return [_attention_plot(part, results, top) for part in parts]


def _attention_plot(here: list[Reach], results: Results, top: float) -> Figure:
    drawn, grid = drawing.panels(len(here))
    look = drawing.style(results.arms)
    for axes, reach in zip(grid, here, strict=True):
        along = np.arange(len(reach.layers))
        for head in reach.mm.T:
            axes.plot(
                along,
                head,
                ls="",
                marker="o",
                ms=4,
                alpha=0.7,
                color=look.get(reach.group.arm, {}).get("color"),
            )
        axes.plot(along, reach.uniform, color=drawing.GREY, lw=1, drawstyle="steps-mid")
        axes.set(ylim=(0, top * 1.25))
        stages = [stage_of(name) for name in reach.layers]
        firsts = [
            place for place, stage in enumerate(stages) if place == 0 or stage != stages[place - 1]
        ]
        axes.set_xticks(firsts, [stages[place] for place in firsts], fontsize=8)
        axes.set_title(f"{reach.group.arm}, {reach.group.budget}", fontsize=10)
        axes.set_ylabel("mm", fontsize=9)
    return drawn


def _by_number(layer: str) -> list:
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in layer.split()]


def _place(names: list[str], name: str) -> tuple[int, str]:
    return (names.index(name), "") if name in names else (len(names), name)
