"""The map from HU to network input, which gives each tissue its part of the range."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from nnssl.hu import HUPolicy

WIDEST = (-1000.0, 3000.0)  # HU
# HU of the map's interior knots. Between them: air and lung; lung's edge and skin; fat; organs;
# organs with contrast agent; bone; dense bone and metal.
KNOTS = (-500.0, -150.0, 0.0, 100.0, 250.0, 1000.0)
# fraction of the output that the pieces share evenly; the rest follows the body's voxels
EVEN = 0.75


def hu_policy(
    histograms: Iterable[np.ndarray], clip: tuple[float, float] | None = None
) -> HUPolicy:
    """Network input of mean 0 and std 1 over body voxels, each scan weighing the same.

    The map rises piecewise between fixed HU (KNOTS). A piece's part of the output is a mixture of
    an even part and of its fraction of the body's voxels: a tempered histogram equalisation. So
    soft tissue, a tenth of the range in HU, gets half of the output, while air, lung, bone and
    metal keep parts of their own. Even parts alone would not know the collection; the histogram
    alone would leave nothing to lung, which is below BODY_HU.

    `clip` (HU) asks for the plain linear map of that range instead.
    `histograms`: counts at each whole HU from BODY_HU upwards (survey.body_histogram).
    """
    hu, pooled = _mean_histogram(histograms)
    low, high = check_clip(clip) if clip else WIDEST
    interior = () if clip else tuple(zip(KNOTS, _levels(hu, pooled), strict=True))
    values = np.interp(hu, *np.array([(low, low), *interior, (high, high)]).T)
    mean, std = _mean_and_std(values, pooled)
    return HUPolicy(low, high, round(mean, 4), round(max(std, 1.0), 4), interior)


def _mean_and_std(values: np.ndarray, fractions: np.ndarray) -> tuple[float, float]:
    """The mean and std of values that each occur in a fraction of the voxels."""
    mean = float((fractions * values).sum())
    return mean, float(np.sqrt((fractions * (values - mean) ** 2).sum()))


def _mean_histogram(histograms: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each HU of the histograms, and the fraction of body voxels there, averaged over the scans."""
    fractions = (histogram / histogram.sum() for histogram in histograms)
    pooled = functools.reduce(np.add, fractions)
    hu = np.arange(len(pooled)) + WIDEST[1] - (len(pooled) - 1)
    return hu, pooled / pooled.sum()


def _levels(hu: np.ndarray, pooled: np.ndarray) -> list[float]:
    """Where KNOTS come to lie within WIDEST; `pooled`: fraction of body voxels at each of `hu`."""
    low, high = WIDEST
    body = np.histogram(hu, bins=(low, *KNOTS, high), weights=pooled)[0]
    parts = EVEN / len(body) + (1 - EVEN) * body
    return [round(float(low + (high - low) * part), 4) for part in parts.cumsum()[:-1]]


def check_clip(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(end) for end in clip)
    if not WIDEST[0] <= low < high <= WIDEST[1]:
        raise ValueError(
            f"the HU range must rise and lie within {WIDEST[0]:g} to {WIDEST[1]:g}, got {low:g} "
            f"{high:g}"
        )
    return low, high
