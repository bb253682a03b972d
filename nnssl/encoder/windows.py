"""What the stages and merges of a Swin need to know of a grid of tokens.

Tokens of a stage travel as one list [B N C]. It is kept in the order of the `WindowPartition` in
use ("window order"), so that a block needs one reordering instead of pad, roll, partition, reverse
and roll. All of this depends on the grid alone and is made once per grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeVar, cast

import torch
from torch import Tensor

from nnssl.encoder.partition import Mask, WindowPartition, partition, to_windows
from nnssl.types import Shape

Reordering = tuple[Tensor, Tensor]  # index and inverse


@dataclass(frozen=True)
class StageWindows:
    """All that a stage needs to know of its grid: two partitions, the reorderings between them,
    and the rows of the bias table.

    Each is (index, inverse): reordered[i] = list[index[i]] and list[i] = reordered[inverse[i]].
    """

    plain: WindowPartition
    shifted: WindowPartition
    raster_to_plain: Reordering
    plain_to_shifted: Reordering | None  # None where nothing is shifted
    shifted_to_raster: Reordering
    relative: Tensor  # [n*n] row of the relative position bias table for each pair of slots


def window_and_shift(grid: Shape, window: int, mode: str) -> tuple[Shape, Shape]:
    """A window is clipped to the grid, and an axis that fits into one is not shifted; SMIT neither
    clips nor stays.
    """
    if mode == "smit":
        return (window,) * len(grid), (window // 2,) * len(grid)
    size = tuple(min(window, g) for g in grid)
    shift = tuple(window // 2 if g > window else 0 for g in grid)
    return size, shift


def relative_index(size: Shape, window: int, clipped: str, axes: str = "zyx") -> Tensor:
    """[n*n] row of the (2*window-1)^dims table for each pair (query, key) of a window of `size`.

    clipped="exact": the pair's true offset. clipped="monai": the top-left corner of the full
    window's index, which for a clipped window is another offset's row (MONAI 1.6.1,
    `WindowAttention.forward`): the token of number a, counted along `axes`, passes for the one of
    number a of a full window.
    """
    coordinates = _coordinates(size)
    if clipped == "monai":
        coordinates = _monai_coordinates(size, window, axes)
    offsets = coordinates[:, :, None] - coordinates[:, None, :] + window - 1
    index = torch.zeros_like(offsets[0])
    for offset in offsets:
        index = index * (2 * window - 1) + offset
    return index.flatten()


def _coordinates(size: Shape) -> Tensor:
    """[dims n] those of the slots of a window, in raster order."""
    axes = torch.meshgrid(*(torch.arange(s) for s in size), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def _monai_coordinates(size: Shape, window: int, axes: str) -> Tensor:
    """[dims n] those, in a full window, of the slots of the same numbers."""
    full = _coordinates((window,) * len(size))
    number = torch.arange(prod(size))
    if axes == "zyx":
        return full[:, number]
    number = number.view(size[::-1]).permute(*reversed(range(len(size)))).flatten()
    return full[:, number].flip(0)


@torch.compiler.assume_constant_result
def stage_windows(
    grid: Shape, window: int, mode: str, device: torch.device, axes: str = "zyx"
) -> StageWindows:
    """`StageWindows` of a token grid; `mode` and `axes` as `SwinConfig.windows` and `.axes`. Kept
    for reuse.
    """
    return _stage_windows(grid, window, mode, device, axes)


@lru_cache(maxsize=64)
def _stage_windows(
    grid: Shape, window: int, mode: str, device: torch.device, axes: str
) -> StageWindows:
    # Tensors born in inference mode could never serve a later training step.
    with torch.inference_mode(False):
        size, shift = window_and_shift(grid, window, mode)
        plain = shifted = partition(grid, size, (0,) * len(grid), mode, axes)
        plain_to_shifted = None
        if any(shift):
            shifted = partition(grid, size, shift, mode, axes)
            plain_to_shifted = _with_inverse(plain.tokens.argsort()[shifted.tokens])
        windows = StageWindows(
            plain=plain,
            shifted=shifted,
            raster_to_plain=_with_inverse(plain.tokens),
            plain_to_shifted=plain_to_shifted,
            shifted_to_raster=(shifted.tokens.argsort(), shifted.tokens),
            relative=relative_index(size, window, mode, axes),
        )
        return moved(windows, device)


def _with_inverse(index: Tensor) -> Reordering:
    return index, index.argsort()


Moved = TypeVar("Moved")
CORNERS = {  # in MONAI's order, the first axis first
    (2, "all"): ("00", "10", "01", "11"),
    (3, "all"): ("000", "100", "010", "001", "110", "101", "011", "111"),
    (2, "legacy"): ("00", "10", "01", "11"),
    (3, "legacy"): ("000", "100", "010", "001", "101", "010", "001", "111"),
}


def corners(step: Shape, merging: str = "all", axes: str = "zyx") -> list[Shape]:
    """Where the tokens that a merge joins lie in their cell of `step`, in the order in which they
    are joined.

    merging: as in `SwinConfig`; "legacy" joins the same number of tokens whatever the step, some of
             them repeatedly, and "all" takes its part of the order where an axis is left as it is.
    axes:    of the order of "legacy"; for "all" the weights can be put in another order instead.
    """
    in_order = [tuple(map(int, corner)) for corner in CORNERS[len(step), merging]]
    if axes == "xyz" and merging == "legacy":
        in_order = [corner[::-1] for corner in in_order]
    inside = [tuple(c % s for c, s in zip(corner, step, strict=True)) for corner in in_order]
    return inside if merging == "legacy" else list(dict.fromkeys(inside))


@torch.compiler.assume_constant_result
def merging_order(
    grid: Shape, step: Shape, device: torch.device, merging: str = "all", axes: str = "zyx"
) -> tuple[Tensor, Tensor | None]:
    """The way (index, inverse) from raster order of a grid to one where the tokens of a cell follow
    each other.

    `step` divides `grid`; a cell has its tokens in the order of `corners`. No inverse exists where
    some are repeated.
    """
    return _merging_order(grid, step, device, merging, axes)


@lru_cache(maxsize=64)
def _merging_order(
    grid: Shape, step: Shape, device: torch.device, merging: str, axes: str
) -> tuple[Tensor, Tensor | None]:
    with torch.inference_mode(False):
        cells = to_windows(torch.arange(prod(grid)).view(grid), step)
        raster = torch.arange(prod(step)).view(step)
        joined = [int(raster[corner]) for corner in corners(step, merging, axes)]
        index = cells[:, joined].flatten()
        once = sorted(joined) == list(range(prod(step)))
        return moved((index, index.argsort() if once else None), device)


def moved(x: Moved, device: torch.device) -> Moved:
    """`x` with every tensor in it on `device`."""
    found: object = x.to(device) if isinstance(x, Tensor) else x
    if isinstance(x, tuple):
        found = tuple(moved(y, device) for y in x)
    elif isinstance(x, WindowPartition | Mask | StageWindows):
        parts: dict = {name: moved(value, device) for name, value in vars(x).items()}
        found = type(x)(**parts)
    return cast("Moved", found)
