"""Panels of slices in rows, with a frame where one lies in another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nnssl.types import Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:red")
MOST_ROWS, MOST_COLUMNS = len(COLOURS), 4

Panel = tuple[str, Tensor]  # title and image
Frame = tuple[Shape, Shape]  # corner and size, in voxels of the region


@dataclass(frozen=True)
class PanelRow:
    """The panels of one view, None for a gap, and where the view lies in its region if known."""

    panels: list[Panel | None]
    frame: Frame | None


def picture(rows: list[PanelRow], greys: tuple[float, float]) -> Figure:
    """One row of panels per view; a single long row is wrapped. The first panel has the frames."""
    lines = _wrapped(rows[0].panels) if len(rows) == 1 else [row.panels for row in rows]
    figure, grid = _empty_grid(len(lines), max(map(len, lines)))
    for line, line_axes in zip(lines, grid, strict=True):
        _draw_line(line_axes, line, greys)
    for row, line_axes, colour in zip(rows, grid, COLOURS, strict=False):
        if row.frame is not None:
            if len(rows) > 1:
                _colour_borders(line_axes, row.panels, colour)
            _add_frame(grid[0, 0], row.frame, colour)
    return figure


def _wrapped(panels: list[Panel | None]) -> list[list[Panel | None]]:
    """In lines of MOST_COLUMNS."""
    starts = range(0, len(panels), MOST_COLUMNS)
    return [panels[start : start + MOST_COLUMNS] for start in starts]


def _draw_line(
    line: Iterable[Axes], panels: list[Panel | None], greys: tuple[float, float]
) -> None:
    for panel, axes in zip(panels, line, strict=False):
        if panel is not None:
            _draw_panel(axes, panel, greys)


def _empty_grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """The figure, and its axes [rows columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * columns, 2.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, grid


def _draw_panel(axes: Axes, panel: Panel, greys: tuple[float, float]) -> None:
    title, image = panel
    axes.imshow(image.float().numpy(), cmap="gray", vmin=greys[0], vmax=greys[1])
    axes.set_title(title, fontsize=9)
    axes.set(frame_on=True, facecolor="tab:blue")


def _colour_borders(line: Iterable[Axes], panels: list[Panel | None], colour: str) -> None:
    """In the colour of the frame; the region itself has none."""
    for axes, panel in zip(line, panels, strict=False):
        if panel is not None and panel[0] != "region":
            axes.spines[:].set(color=colour, linewidth=3)


def _add_frame(axes: Axes, frame: Frame, colour: str) -> None:
    from matplotlib.patches import Rectangle

    (y, x), (height, width) = (numbers[-2:] for numbers in frame)
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2))
