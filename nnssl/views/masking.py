"""Block masks: drawn on a grid of cubes, repeated to any finer grid. True = hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnssl.types import Shape

LONGEST = 3.0  # longest over shortest side of a box of hidden cells, at most; BEiT's boxes reach 3.3


def block_grid(crop: Shape, block: int) -> Shape:
    """The number of blocks along each axis. Raises ValueError where `block` does not divide the crop."""
    for axis, size in enumerate(crop):
        if size % block:
            nearest = " ".join(str(max(block, size // block * block)) for size in crop)
            raise ValueError(
                f"mask block {block} does not divide crop {'x'.join(map(str, crop))} (axis {axis}); "
                f"choose a crop of multiples of {block}, such as --crop {nearest}"
            )
    return tuple(size // block for size in crop)


def draw_blocks(grid: Shape, ratio: float, generator: torch.Generator) -> Tensor:
    """Bool [*grid] on the CPU with exactly ceil(ratio * n) of its n blocks hidden (Xie 2022, SimMIM)."""
    count = math.prod(grid)
    masked = torch.zeros(count, dtype=torch.bool)
    masked[torch.randperm(count, generator=generator)[: math.ceil(ratio * count)]] = True
    return masked.view(grid)


def repeat_blocks(masked: Tensor, factor: int) -> Tensor:
    """[B *grid] to [B *(factor * grid)], nearest neighbour: every finer cell takes its block's value."""
    for axis in range(1, masked.ndim):
        masked = masked.repeat_interleave(factor, dim=axis)
    return masked


def draw_cuboids(grid: Shape, ratio: float, generator: torch.Generator) -> Tensor:
    """Bool [*grid] on the CPU with round(ratio * n), at least 1, of its n cells hidden by random boxes.

    Boxes are drawn, of at most as many cells as are still to be hidden and with sides that differ up to 3-fold, until
    the ratio is met; of the last one only the first cells may count. Block-wise masking (Bao 2022, BEiT; Zhou 2022,
    iBOT), in any number of dimensions.
    """
    masked = torch.zeros(grid, dtype=torch.bool)
    missing = max(1, round(ratio * math.prod(grid)))
    while missing:
        size, *draws = torch.rand(1 + 2 * len(grid), generator=generator).tolist()
        volume = 1 + size * (missing - 1)
        shape = [LONGEST ** (draw - 0.5) for draw in draws[: len(grid)]]
        scale = (volume / math.prod(shape)) ** (1 / len(grid))
        sides = [min(cells, max(1, round(scale * side))) for cells, side in zip(grid, shape, strict=True)]
        corner = [
            int(draw * (cells - side + 1)) for draw, cells, side in zip(draws[len(grid) :], grid, sides, strict=True)
        ]
        box = torch.zeros_like(masked)
        box[tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))] = True
        new = (box & ~masked).view(-1).nonzero()[:missing, 0]
        masked.view(-1)[new] = True
        missing -= len(new)
    return masked
