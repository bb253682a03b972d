"""What fine-tuning does to intensities and pretraining must have seen: narrower clipping of HU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# In units of the plan's sd around its mean over body voxels; with 40 and 250 HU these are -460 to -60 HU for the
# lower end and 240 to 1300 HU for the upper end.
LOWS, HIGHS = (-2.0, -0.4), (0.8, 5.0)


def draw_window(chance: float, generator: torch.Generator) -> tuple[float, float]:
    """With probability `chance` a random window (lower, upper), else (-inf, inf).

    nnU-Net clips each CT dataset at percentiles of its own foreground, so fat, lung and air may all arrive as one
    value; an encoder that never saw that meets another world. The CT analogue of colour jitter.
    """
    happens, low, high = torch.rand(3, generator=generator).tolist()
    if happens >= chance:
        return -math.inf, math.inf
    return LOWS[0] + low * (LOWS[1] - LOWS[0]), HIGHS[0] + high * (HIGHS[1] - HIGHS[0])


def apply_window(region: Tensor, bounds: tuple[float, float]) -> Tensor:
    """`region` clipped to `bounds`; any shape."""
    return region.clamp(*bounds)
