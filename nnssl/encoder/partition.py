"""A partition of a token grid into windows, and which tokens may attend to each other."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nnssl.shapes import floor_div, round_up
from nnssl.types import GradContext, Shape


@dataclass(frozen=True)
class Mask:
    """The pairs that may not attend to each other: window w adds patterns[which[w]] to its scores.
    There are few patterns.

    patterns: [P n n] 0 where a pair of slots may attend, else `hidden`.
    which:    [nW] the pattern of each window.
    regions:  [P n] int32, the same in other words: a pair may attend where its slots are of one
              region.
    hidden:   minus infinity, or -100 as in MONAI.
    counts:   how many of the windows have each pattern.
    order:    [nW] the windows sorted by pattern; rank: its inverse.
    """

    patterns: Tensor
    which: Tensor
    regions: Tensor
    hidden: float
    counts: tuple[int, ...]
    order: Tensor
    rank: Tensor

    @classmethod
    def of(cls, regions: Tensor, which: Tensor, hidden: float) -> Mask:
        """From regions [P n] and which [nW]."""
        masked = regions[:, :, None] != regions[:, None, :]
        order = which.argsort(stable=True)
        return cls(
            patterns=torch.zeros(masked.shape).masked_fill_(masked, hidden),
            which=which,
            regions=regions.to(torch.int32),
            hidden=hidden,
            counts=tuple(which.bincount(minlength=len(regions)).tolist()),
            order=order,
            rank=order.argsort(),
        )


@dataclass(frozen=True)
class WindowPartition:
    """One way to cut a grid into windows of n slots. A slot holds a token or, at the border,
    padding.

    size:          the window really used, at most the grid.
    tokens:        [N] raster index of the tokens, in window order without padding.
    token_of_slot: [nW*n] which of `tokens` is in each slot (0 for padding).
    slot_of_token: [N] the slot of each of `tokens`.
    output_slot:   [N] the slot whose output each of `tokens` takes: `slot_of_token`, but for
                   windows "smit".
    occupied:      [nW*n 1] 1 for a token, 0 for padding.
    mask:          None where every pair of a window may attend.

    Without padding token_of_slot, slot_of_token and occupied are None, and so is output_slot, but
    for windows "smit".
    """

    size: Shape
    tokens: Tensor
    token_of_slot: Tensor | None
    slot_of_token: Tensor | None
    output_slot: Tensor | None
    occupied: Tensor | None
    mask: Mask | None


def partition(
    grid: Shape, size: Shape, shift: Shape, mode: str, axes: str = "zyx"
) -> WindowPartition:
    """Cut `grid` into windows of `size` after moving it by -`shift`.

    mode="exact": padding slots are attended to by no token. "monai", "smit": they take part as
    zeros.
    """
    slots = _padded_slots(grid, size, shift)
    occupied = ~slots.padding.flatten()
    token_of_slot = slot_of_token = None
    if not occupied.all():
        slot_of_token = occupied.nonzero().flatten()
        token_of_slot = torch.zeros(occupied.numel(), dtype=torch.long)
        token_of_slot[slot_of_token] = torch.arange(len(slot_of_token))
    output_slot = slot_of_token
    if mode == "smit":
        output_slot = _misplaced(round_up(grid, size), size, axes)[occupied]
    return WindowPartition(
        size=size,
        tokens=slots.raster.flatten()[occupied],
        token_of_slot=token_of_slot,
        slot_of_token=slot_of_token,
        output_slot=output_slot,
        occupied=None if token_of_slot is None else occupied[:, None].float(),
        mask=_mask(slots, mode),
    )


class _Slots(NamedTuple):
    """The raster index of each slot's token, its region, whether it is padding; each [nW n].

    Tokens of one window attend to each other within one region only: what the shift has wrapped
    around is another region than what it has not.
    """

    raster: Tensor
    region: Tensor
    padding: Tensor


def _padded_slots(grid: Shape, size: Shape, shift: Shape) -> _Slots:
    padded = round_up(grid, size)
    raster = torch.zeros((1,) * len(grid), dtype=torch.long)
    region = torch.zeros_like(raster)
    padding = torch.zeros_like(raster, dtype=torch.bool)
    for axis, (g, p, s) in enumerate(zip(grid, padded, shift, strict=True)):
        along = [-1 if a == axis else 1 for a in range(len(grid))]
        moved = (torch.arange(p) + s).view(along)
        raster = raster * g + moved % p
        region = region * 2 + (moved >= p)
        padding = padding | (moved % p >= g)
    return _Slots(*(to_windows(x.expand(padded), size) for x in (raster, region, padding)))


def _mask(slots: _Slots, mode: str) -> Mask | None:
    """Hides slots of different regions from each other, and in mode "exact" padding from tokens."""
    hidden, region = -100.0, slots.region
    if mode == "exact":
        hidden, region = -torch.inf, region * 2 + slots.padding
    regions, which = region.unique(dim=0, return_inverse=True)
    return None if (regions == regions[:, :1]).all() else Mask.of(regions, which, hidden)


def _misplaced(padded: Shape, size: Shape, axes: str) -> Tensor:
    """[nW*n] the slot whose output SMIT gives to each slot.

    Its `window_reverse` views the windows as [nX nY nZ wx wy wz] and lays them out as [nX nZ wy nY
    wx wz], read as [X Y Z]; its `window_partition` cuts [nX wx nY wy nZ wz]. The weights were
    trained through that.
    """
    if axes == "xyz":
        padded, size = padded[::-1], size[::-1]
    numbers = torch.arange(prod(padded))
    slots = numbers.view(*floor_div(padded, size), *size)
    laid_out = slots.permute(0, 2, 4, 1, 3, 5).flatten()
    sources = laid_out[to_windows(numbers.view(padded), size).flatten()]
    if axes == "zyx":
        return sources
    theirs = slots.permute(2, 1, 0, 5, 4, 3).flatten()  # the number there of each of our slots
    return theirs.argsort()[sources[theirs]]


class Reordered(torch.autograd.Function):
    """x in the order of `index` along an axis; its gradient is a gather by the inverse.

    PyTorch's own would scatter: slower, and its sums are in any order.
    """

    @staticmethod
    def forward(ctx: _Axis, x: Tensor, index: Tensor, inverse: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.axis = axis
        return x.index_select(axis, index)

    @staticmethod
    def backward(ctx: _Axis, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(ctx.axis, inverse), None, None, None


class _Axis(GradContext, Protocol):
    axis: int


def to_windows(x: Tensor, size: Shape) -> Tensor:
    """[*padded] to [nW n], windows and slots in raster order."""
    windows = floor_div(x.shape, size)
    split = [n for pair in zip(windows, size, strict=True) for n in pair]
    axes = range(len(split))
    return x.reshape(split).permute(*axes[::2], *axes[1::2]).reshape(-1, prod(size))
