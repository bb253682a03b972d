"""Two overlapping views of each scan, for contrastive methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.types import Shape
from nnssl.views.intensity import STANDARD, Ranges, apply_intensity, draw_intensity
from nnssl.views.spatial import cut, draw_flips, draw_offset, flip, per_scan

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def two_views(
    regions: Float[Tensor, "batch 1 *region"],
    generators: Sequence[torch.Generator],
    crop: Shape,
    ranges: Ranges = STANDARD,
    within: Int[Tensor, "batch dims 2"] | None = None,
) -> Float[Tensor, "2 batch 1 *crop"]:
    """Two random cuts of each region, each with its own flips and intensities: [B 1 *region] -> [2
    B 1 *crop].

    With regions of 4/3 of the crop on every axis any two views have in common at least (2/3)^3 =
    30 % of their volume. The first entry holds the first views of all, the second the second ones.
    `within` [B dims 2]: where the scan lies in each region; both views lie in it, where it is large
    enough.
    """
    size, bounds = tuple(regions.shape[2:]), per_scan(within, len(regions))
    images, flips, intensities = [], [], []
    for _ in range(2):
        for region, generator, own in zip(regions, generators, bounds, strict=True):
            images.append(cut(region, draw_offset(size, crop, generator, own), crop))
            flips.append(draw_flips(len(crop), generator))
            intensities.append(draw_intensity(generator, ranges))
    views = apply_intensity(flip(torch.stack(images), torch.stack(flips)), intensities)
    return views.unflatten(0, (2, len(regions)))
