"""Sub-crops of a region: offsets drawn from a generator, cut without interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.types import Shape


def draw_offset(region: Shape, crop: Shape, generator: torch.Generator) -> Shape:
    """A uniformly random corner at which `crop` still lies inside `region`."""
    return tuple(
        int(torch.randint(outer - inner + 1, (), generator=generator))
        for outer, inner in zip(region, crop, strict=True)
    )


def cut(volume: Tensor, offset: Shape, crop: Shape) -> Tensor:
    """The part of `volume` [C *region] at `offset`: [C *crop], a view."""
    return volume[(slice(None), *(slice(o, o + c) for o, c in zip(offset, crop, strict=True)))]
