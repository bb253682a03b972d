"""Two large and several small views of each region, for self-distillation (Caron 2020, SwAV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.types import Shape
from nnssl.views.intensity import STANDARD, Ranges, apply_intensity, draw_intensity
from nnssl.views.spatial import crop_size, draw_box, draw_flips, flip, per_scan, resample

if TYPE_CHECKING:
    from jaxtyping import Float, Int

GLOBAL_VIEWS = 2


@dataclass(frozen=True)
class MultiCropConfig:
    """Sides of the views as fractions of the region, which is 4/3 of the crop."""

    local_views: int = 4  # half as large on each axis; 3D papers take 4 to 8
    # smallest; the largest is 1. Caron 2021: areas 0.4 to 1, so sides of 0.63 to 1
    global_side: float = 0.6
    # Caron 2021: areas 0.05 to 0.4, so sides of 0.22 to 0.63; below 0.3 one sees little more than
    # interpolation
    local_side_low: float = 0.3
    local_side_high: float = 0.6

    def __post_init__(self) -> None:
        if self.local_views < 0:
            raise ValueError(f"local_views must be 0 or more, got {self.local_views}")
        if not 0 < self.global_side <= 1:
            raise ValueError(
                f"global_side must lie above 0 and be at most 1, got {self.global_side}"
            )
        self._check_local_sides()

    def _check_local_sides(self) -> None:
        if not 0 < self.local_side_low <= self.local_side_high <= 1:
            raise ValueError(
                f"0 < local_side_low <= local_side_high <= 1 must hold, got {self.local_side_low} "
                f"and {self.local_side_high}"
            )


def local_size(crop: Shape) -> Shape:
    """Half of the crop, as a multiple of the encoder's patch."""
    return tuple(max(2, 2 * round(size / 4)) for size in crop)


def multicrop(
    regions: Float[Tensor, "batch 1 *region"],
    generators: Sequence[torch.Generator],
    config: MultiCropConfig,
    ranges: Ranges = STANDARD,
    within: Int[Tensor, "batch dims 2"] | None = None,
) -> dict[str, Float[Tensor, "views batch 1 *size"]]:
    """{"global": [2 B 1 *crop], "local": [n B 1 *half]} of regions [B 1 *region]; "local" only
    where n > 0.

    `within` [B dims 2]: where the scan lies in each region, see `nnssl.views.spatial.inside`.
    """
    crop = crop_size(tuple(regions.shape[2:]))
    views = {
        "global": random_views(
            regions, generators, GLOBAL_VIEWS, (config.global_side, 1.0), crop, ranges, within
        )
    }
    if config.local_views:
        sides = (config.local_side_low, config.local_side_high)
        views["local"] = random_views(
            regions, generators, config.local_views, sides, local_size(crop), ranges, within
        )
    return views


def random_views(
    regions: Float[Tensor, "batch 1 *region"],
    generators: Sequence[torch.Generator],
    count: int,
    sides: tuple[float, float],
    size: Shape,
    ranges: Ranges = STANDARD,
    within: Int[Tensor, "batch dims 2"] | None = None,
) -> Float[Tensor, "views batch 1 *size"]:
    """`count` random boxes of each region, resampled to `size`, flipped, with intensities of their
    own.

    [B 1 *region] -> [count B 1 *size]; `sides` are fractions of the region's; `within` as in
    `multicrop`.
    """
    region, bounds = tuple(regions.shape[2:]), per_scan(within, len(regions))
    images, flips, intensities = [], [], []
    for _ in range(count):
        boxes = [draw_box(region, sides, *pair) for pair in zip(generators, bounds, strict=True)]
        images.append(resample(regions, torch.stack(boxes), size))
        flips += [draw_flips(len(size), generator) for generator in generators]
        intensities += [draw_intensity(generator, ranges) for generator in generators]
    views = apply_intensity(flip(torch.cat(images), torch.stack(flips)), intensities)
    return views.unflatten(0, (count, len(regions)))
