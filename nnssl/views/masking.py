"""Block masks: drawn on a grid of blocks, repeated to any finer grid. True = hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.host_memory import to_device
from nnssl.shapes import floor_div
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

FLAT = 0.1  # in units of the input, some 25 HU: blocks that vary less are one constant
# longest over shortest side of a box of hidden cells, at most; BEiT's boxes reach 3.3
LONGEST = 3.0


def block_grid(crop: Shape, block: int | Shape) -> Shape:
    """The number of blocks along each axis; `block` in voxels, one number or one per axis.

    Raises ValueError where they do not divide the crop.
    """
    sides = (block,) * len(crop) if isinstance(block, int) else block
    grid = floor_div(crop, sides)
    for axis, (size, side) in enumerate(zip(crop, sides, strict=True)):
        if size % side:
            raise ValueError(
                f"mask block {side} does not divide crop {'x'.join(map(str, crop))} (axis {axis}); "
                f"choose a crop of multiples of {side}, such as --crop {_nearest(grid, sides)}"
            )
    return grid


def _nearest(grid: Shape, sides: Shape) -> str:
    """The crop of whole blocks, one at least along each axis, as --crop takes it."""
    return " ".join(str(max(1, count) * side) for count, side in zip(grid, sides, strict=True))


def hide_blocks(
    draws: Float[Tensor, "batch *grid"],
    ratio: float,
    within: Bool[Tensor, "batch *grid"] | None = None,
) -> Bool[Tensor, "batch *grid"]:
    """Bool [B *grid] with exactly ceil(ratio * n) of the n blocks of each image hidden (Xie 2022,
    SimMIM).

    draws:  random numbers in [0, 1), [B *grid], on any device: the lowest are hidden.
    within: Bool [B *grid], the blocks that may be hidden; n counts these. None: all of them.
    """
    within = torch.ones_like(draws, dtype=torch.bool) if within is None else within
    # The host does not wait for their number: what follows from each is looked up on the device.
    hidden = _hidden_of(ratio, draws[0].numel(), draws.device)
    return _lowest(draws, hidden[within.flatten(1).sum(dim=1)], within)


def uniform(
    shape: Shape, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "batch *shape"]:
    """Numbers in [0, 1) on `device`, drawn from a generator for each image."""
    draws = [torch.rand(shape, generator=generator) for generator in generators]
    return to_device(torch.stack(draws), device)


def keep_at_most(
    masked: Bool[Tensor, "batch *grid"], most: int, draws: Float[Tensor, "batch *grid"]
) -> Bool[Tensor, "batch *grid"]:
    """Bool [B *grid]: of each image's True cells `most` chosen at random, or all where they are
    fewer.
    """
    return _lowest(draws, masked.flatten(1).sum(dim=1).clamp(max=most), masked)


@lru_cache(maxsize=64)
def _hidden_of(ratio: float, blocks: int, device: torch.device) -> Tensor:
    """[blocks + 1]: ceil(ratio * n) for n = 0, 1, ...; fp32 on a device may round otherwise."""
    with torch.inference_mode(False):
        return torch.tensor([math.ceil(ratio * n) for n in range(blocks + 1)]).to(device)


def _lowest(draws: Tensor, counts: Tensor, within: Tensor) -> Tensor:
    """Bool [B *grid]: the `counts` [B] cells of `within` with the lowest draws."""
    ranks = draws.masked_fill(~within, 2.0).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks < counts[:, None]).view_as(within)


def varied_blocks(
    images: Float[Tensor, "batch 1 *size"], block: Shape
) -> Bool[Tensor, "batch *grid"]:
    """Bool [B *grid]: the blocks of [B 1 *size] that are not one constant, and so show some
    anatomy.

    Air and padding are one value once clipped, whatever the scan's units, and so is what a window
    cuts off: there is nothing to predict in them. A threshold in HU would not do for MRI, nor for
    what a window has moved.
    """
    grid = block_grid(tuple(images.shape[2:]), block)
    cells = images[:, 0]
    for axis, (count, side) in enumerate(zip(grid, block, strict=True)):
        cells = cells.unflatten(1 + 2 * axis, (count, side))
    inner_axes = [2 + 2 * axis for axis in range(len(grid))]
    return cells.amax(inner_axes) - cells.amin(inner_axes) > FLAT


def draw_masks(
    images: Float[Tensor, "batch 1 *size"],
    block: Shape,
    ratio: float,
    air: bool,
    generators: Sequence[torch.Generator],
) -> Bool[Tensor, "batch *grid"]:
    """Bool [B *grid]: the blocks of [B 1 *size] that are hidden, drawn from a generator for each
    image.

    air: whether blocks of one constant count too; see `varied_blocks`.
    """
    grid = block_grid(tuple(images.shape[2:]), block)
    draws = uniform(grid, generators, images.device)
    return hide_blocks(draws, ratio, None if air else varied_blocks(images, block))


def visible_count(blocks: int, ratio: float) -> int:
    """The number of blocks per image that `draw_visible` takes: those left if any block may be
    hidden.

    Raises ValueError where none does.
    """
    count = blocks - math.ceil(ratio * blocks)
    if count < 1:
        raise ValueError(
            f"a ratio of {ratio:g} hides all of {blocks} block(s), but visible_only=true needs a "
            "visible one; use a larger --crop, a smaller mask_block or a lower mask_ratio"
        )
    return count


def draw_visible(
    masked: Bool[Tensor, "batch *grid"],
    images: Float[Tensor, "batch 1 *size"],
    block: Shape,
    ratio: float,
    generators: Sequence[torch.Generator],
) -> Int[Tensor, "batch visible"]:
    """int64 [B m], ascending: raster numbers of the blocks that a `Visible` encoder computes.

    masked: Bool [B *grid], what `draw_masks` has hidden of [B 1 *size]; never taken.
    Where blocks of one constant cannot be hidden, more than m may be visible: those that show some
    anatomy all come first, constant ones by chance.
    """
    count = visible_count(math.prod(masked.shape[1:]), ratio)
    draws = uniform(tuple(masked.shape[1:]), generators, images.device)
    later = masked * 4 + ~varied_blocks(images, block)
    order = (draws + later).flatten(1).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def all_but(visible: Int[Tensor, "batch visible"], grid: Shape) -> Bool[Tensor, "batch *grid"]:
    """Bool [B *grid], True but at the raster numbers `visible` [B m]."""
    everywhere = torch.ones(len(visible), math.prod(grid), dtype=torch.bool, device=visible.device)
    return everywhere.scatter(1, visible, False).view(-1, *grid)


def repeat_blocks(
    masked: Shaped[Tensor, "batch *grid"], factor: int | Shape
) -> Shaped[Tensor, "batch *finer"]:
    """[B *grid] to [B *(factor * grid)], nearest neighbour: every finer cell takes its block's
    value.
    """
    batch, grid = len(masked), masked.shape[1:]
    factors = (factor,) * len(grid) if isinstance(factor, int) else factor
    sides = list(zip(grid, factors, strict=True))
    cells = masked.reshape(batch, *(n for size in grid for n in (size, 1)))
    cells = cells.expand(batch, *(n for side in sides for n in side))
    return cells.reshape(batch, *(size * times for size, times in sides))


def draw_cuboids(grid: Shape, ratio: float, generator: torch.Generator) -> Bool[Tensor, "*grid"]:
    """Bool [*grid] on the CPU with round(ratio * n), at least 1, of its n cells hidden by random
    boxes.

    Boxes are drawn, of at most as many cells as are still to be hidden and with sides that differ
    up to 3-fold, until the ratio is met; of the last one only the first cells may count. Block-wise
    masking (Bao 2022, BEiT; Zhou 2022, iBOT), in any number of dimensions.
    """
    masked = torch.zeros(grid, dtype=torch.bool)
    missing = max(1, round(ratio * math.prod(grid)))
    while missing:
        box = _draw_cuboid(grid, missing, generator)
        new = (box & ~masked).view(-1).nonzero()[:missing, 0]
        masked.view(-1)[new] = True
        missing -= len(new)
    return masked


def _draw_cuboid(grid: Shape, most: int, generator: torch.Generator) -> Tensor:
    """Bool [*grid]: one box, of 1 to `most` cells but for the rounding of its sides."""
    size, *draws = torch.rand(1 + 2 * len(grid), generator=generator).tolist()
    sides = _cuboid_sides(grid, 1 + size * (most - 1), draws[: len(grid)])
    inside = []
    for draw, cells, side in zip(draws[len(grid) :], grid, sides, strict=True):
        start = int(draw * (cells - side + 1))
        inside.append(slice(start, start + side))
    box = torch.zeros(grid, dtype=torch.bool)
    box[tuple(inside)] = True
    return box


def _cuboid_sides(grid: Shape, volume: float, draws: Sequence[float]) -> list[int]:
    """Sides in cells of a box of some `volume` cells; `draws` in [0, 1) give its shape."""
    shape = [LONGEST ** (draw - 0.5) for draw in draws]
    scale = (volume / math.prod(shape)) ** (1 / len(grid))
    wanted = (max(1, round(scale * side)) for side in shape)
    return list(map(min, grid, wanted))
