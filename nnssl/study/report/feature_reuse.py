"""Feature reuse: CKA of encoders by stage and block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnssl.study.report import drawing
from nnssl.study.report.results import Results
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import PRETRAINED, CkaRow, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

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

    @property
    def rows(self) -> list[list[Cell]]:
        """Rows of the table with every value."""
        return [
            [self.task, self.first, self.second, layer, other, float(value)]
            for layer, row in zip(self.values.index, self.values.to_numpy(), strict=True)
            for other, value in zip(self.values.columns, row, strict=True)
        ]


def pairs(results: Results) -> list[Pair]:
    """By task and arm, in the description's order."""
    found = map(_pair, grouped(results.cka, _networks).values())
    return sorted(found, key=lambda pair: _pair_sort_key(results, pair))


def _networks(row: CkaRow) -> tuple:
    """What rows have in common that differ by their seed only."""
    return row.task, row.first, row.second, tuple(row.rows), tuple(row.columns)


def _pair(seeds: list[CkaRow]) -> Pair:
    one = seeds[0]
    mean = np.array([row.values for row in seeds], dtype=float).mean(axis=0)
    values = pd.DataFrame(mean, index=one.rows, columns=one.columns)
    volumes = sum(row.volumes for row in seeds)
    return Pair(one.task, one.first, one.second, values, len(seeds), volumes)


def _pair_sort_key(results: Results, pair: Pair) -> tuple:
    """By task, then by the arm of the first encoder, as `<arm> <budget>` names it; a pretrained one
    goes first.
    """
    arm, _, budget = pair.first.rpartition(" ")
    return (
        *positions_in_description(results, pair.task, arm),
        budget != PRETRAINED,
        pair.first,
        pair.second,
    )


SIMILARITY = Table(
    name="cka",
    title="Feature reuse: CKA",
    note=(
        "Linear CKA, unbiased, of the same layers of two encoders on the same places of the same "
        "scans, the mean over a stage's blocks: 1 is the same up to rotation and scale, 0 is "
        "unrelated. High between pretrained and fine-tuned: the features were reused; low: they "
        "were learnt again. What a pair of random starts has is what architecture and data alone "
        "explain."
    ),
    columns=["task", "first", "second", "seeds"],
)
LAYERS = Table(
    name="cka_layers",
    title="CKA by layer",
    note="",
    columns=["task", "first", "second", "layer", "other layer", "CKA"],
)


def similarity(encoder_pairs: list[Pair]) -> Table:
    """By stage: the mean over its blocks of the CKA with the same block."""
    stages = dict.fromkeys(stage_of(name) for pair in encoder_pairs for name in pair.values.index)
    return SIMILARITY.with_columns(stages, (_by_stage(pair, stages) for pair in encoder_pairs))


def _by_stage(pair: Pair, stages: Iterable[str]) -> list[Cell]:
    same = pair.same()
    means = [_mean_of_stage(same, stage) for stage in stages]
    return [pair.task, pair.first, pair.second, pair.seeds, *means]


def _mean_of_stage(by_layer: dict[str, float], stage: str) -> float | None:
    values = [value for name, value in by_layer.items() if stage_of(name) == stage]
    return float(np.mean(values)) if values else None


def layers(encoder_pairs: list[Pair]) -> Table:
    """Every value of every heat map."""
    return LAYERS.of(row for pair in encoder_pairs for row in pair.rows)


def stage_of(layer: str) -> str:
    """`stage 3 block 7` is of `stage 3`."""
    return layer.split(" block ")[0]


def heat_maps(encoder_pairs: list[Pair], task: str) -> list[Figure]:
    """Figures of up to nine maps of a task's pairs; lines part the stages."""
    return list(
        map(_heat_maps, panels_by_figure([pair for pair in encoder_pairs if pair.task == task]))
    )


def panels_by_figure(panels: list) -> list[list]:
    """Panels in lists of as many as a figure holds."""
    return [panels[i : i + MAPS_A_FIGURE] for i in range(0, len(panels), MAPS_A_FIGURE)]


def _heat_maps(shown: list[Pair]) -> Figure:
    figure, grid = drawing.panels(len(shown), height=3.3)
    images = [_heat_map(axes, pair) for axes, pair in zip(grid, shown, strict=True)]
    figure.colorbar(images[-1], ax=grid, shrink=0.6, label="CKA")
    return figure


def _heat_map(axes: Axes, pair: Pair) -> AxesImage:
    image = axes.imshow(
        pair.values, vmin=0, vmax=1, cmap="viridis", origin="lower", interpolation="nearest"
    )
    _part_stages(pair.values.columns.tolist(), axes.set_xticks, axes.axvline)
    _part_stages(pair.values.index.tolist(), axes.set_yticks, axes.axhline)
    title = f"{pair.task}, mean of {pair.seeds} seed(s)"
    drawing.label(axes, title, pair.second, pair.first, size=9)
    return image


def _part_stages(names: list[str], ticks: Callable, line: Callable) -> None:
    """A tick in the middle of each stage, and white lines between them."""
    stages, starts = stages_of(names)
    ends = [*starts[1:], len(names)]
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    ticks(middles, [_stage_tick_label(stage) for stage in stages])
    for end in ends[:-1]:
        line(end - 0.5, color="white", lw=0.8)


def stages_of(layers: Sequence[str]) -> tuple[list[str], list[int]]:
    """The stages of some layers, one after the other, and where each begins."""
    stages = [stage_of(name) for name in layers]
    starts = [n for n, stage in enumerate(stages) if n == 0 or stage != stages[n - 1]]
    return [stages[n] for n in starts], starts


def _stage_tick_label(stage: str) -> str:
    return stage.removeprefix("stage ") if stage.startswith("stage ") else "patch"


def positions_in_description(results: Results, task: str, arm: str) -> tuple:
    """Where both stand in the description."""
    return _position(results.tasks, task), _position(results.arms, arm)


def _position(names: list[str], name: str) -> tuple[int, str]:
    return (names.index(name), "") if name in names else (len(names), name)
