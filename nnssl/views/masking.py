"""Block masks: drawn on a grid of cubes, repeated to any finer grid. True = hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnssl.types import Shape


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
