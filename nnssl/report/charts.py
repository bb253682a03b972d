"""The charts of a collection: HU of the body, and spacing and size by axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnssl.data.survey import HISTOGRAM
from nnssl.hu import HUPolicy
from nnssl.study.report import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = 10  # HU: width of a bin
SHOWN_HU = (-500, 1000)
PANEL = (4.6, 3.1)  # inches


def hu_panel(histograms: list[np.ndarray], policy: HUPolicy) -> str:
    """SVG of how the body's HU are distributed, and of the map to the network's input.

    histograms: of each scan, in bins of STEP HU from HISTOGRAM[0].
    """
    figure = drawing.figure(*PANEL)
    axes = figure.subplots()
    _draw_fractions(axes, _percent(histograms))
    _draw_map(axes.twinx(), policy)
    axes.legend(fontsize=8, loc="center right")
    axes.set_title(f"HU of the body, {len(histograms)} scans", fontsize=10)
    return drawing.svg(figure)


def _percent(histograms: list[np.ndarray]) -> np.ndarray:
    """The histograms in percent of the body's voxels, [scans bins]."""
    return 100 * np.array([counts / max(counts.sum(), 1) for counts in histograms])


def _draw_fractions(axes: Axes, percent: np.ndarray) -> None:
    """percent: of the body's voxels, [scans bins]."""
    hu = HISTOGRAM[0] + STEP * (np.arange(percent.shape[1]) + 0.5)
    low, high = np.percentile(percent, (5, 95), axis=0)
    axes.fill_between(hu, low, high, alpha=0.3, lw=0, label="5 to 95 % of the scans")
    axes.plot(hu, percent.mean(axis=0), lw=1.2, label="mean")
    axes.set(xlim=SHOWN_HU, ylim=(0, None), xlabel="HU", ylabel=f"% of the body in {STEP} HU")


def _draw_map(axes: Axes, policy: HUPolicy) -> None:
    hu, levels = np.array(policy.knots).T
    axes.plot(hu, levels, ls="--", lw=1, color=drawing.GREY)
    ends = np.interp(SHOWN_HU, hu, levels)
    axes.set(xlim=SHOWN_HU, ylim=ends, ylabel="network's input (dashed)")


def _draw_axes(axes: Axes, values: np.ndarray) -> None:
    """A histogram of each column of `values` [scans 3]."""
    edges = np.linspace(0, 1.05 * values.max(), 40)
    for name, column, colour in zip("zyx", values.T, drawing.COLOURS, strict=False):
        axes.hist(column, edges, histtype="step", lw=1.5, color=colour, label=name)


def axes_panel(what: str, values: np.ndarray) -> str:
    """SVG of the distribution of `values` [scans 3], in mm."""
    figure = drawing.figure(*PANEL)
    axes = figure.subplots()
    _draw_axes(axes, values)
    axes.set(xlabel=f"{what} (mm), as stored", ylabel="scans")
    axes.legend(fontsize=8)
    axes.set_title(f"{what.capitalize()} by axis", fontsize=10)
    return drawing.svg(figure)
