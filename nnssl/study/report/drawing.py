"""How the report's figures look: sizes for a laptop's width, one colour an arm everywhere, the same
file every time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnssl.study.rows import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.5  # inches: 1008 pixels on a page, so that 9 points are read as 9 points
ACROSS = 3  # panels
GREY = "#6b6b6b"
# Okabe and Ito's, which colour-blind readers can tell apart, then further ones.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c564b",
    "#17becf",
    "#7f3fbf",
    "#4d4d00",
)
MARKERS = "osD^vP*Xp"  # one fewer, so that colour and marker do not come again together
SCRATCH = {"color": GREY, "marker": "x"}


def style(arms: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each arm; scratch is grey."""
    others = [arm for arm in arms if arm != BASELINE]
    styles = {arm: _style_of(index) for index, arm in enumerate(others)}
    return {BASELINE: SCRATCH, **styles}


def _style_of(index: int) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # the object interface: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure and the axes of `count` panels, at most `ACROSS` in a row."""
    across = min(ACROSS, count)
    rows = -(-count // across)
    fig = figure(WIDTH * (0.6 if across == 1 else 1), height * rows + 0.5)
    grid = fig.subplots(rows, across, squeeze=False)
    shown, spare = list(grid.flat[:count]), grid.flat[count:]
    for axes in spare:
        axes.set_visible(False)
    for axes in shown:
        _open_frame(axes)
    return fig, shown


def _open_frame(axes: Axes) -> None:
    """No lines above and on the right."""
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def label(axes: Axes, title: str, across: str, upwards: str, size: int = 10) -> None:
    """size: of the title."""
    axes.set_title(title, fontsize=size)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(upwards, fontsize=9)


def legend(fig: Figure, handles: dict) -> None:
    """One for the whole figure, below it, in as many rows as its width asks for."""
    entry = 0.6 + 0.075 * max(map(len, handles))  # inches: a line, and letters of 9 points
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=max(1, min(6, len(handles), int(fig.get_figwidth() / entry))),
        fontsize=9,
    )


def svg(fig: Figure) -> str:
    """The figure as SVG, the same text for the same figure."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "nnssl", "svg.fonttype": "none", "font.size": 9}):
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
