"""Window arithmetic: which token of a grid sits in which window, and who may attend to whom.

Tokens of a stage travel as one list [B N C]. A `WindowPartition` is one way to cut the grid into
windows; the list is kept in the order of the cut in use ("window order"), so that a block needs one
reordering instead of pad, roll, partition, reverse and roll. All of this depends on the grid alone
and is made once per grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeVar, cast

import torch
from torch import Tensor

from nnssl.types import Shape


@dataclass(frozen=True)
class Mask:
    """Who may not attend to whom: window w adds patterns[which[w]] to its scores. There are few
    patterns.

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
        apart = regions[:, :, None] != regions[:, None, :]
        order = which.argsort(stable=True)
        return cls(
            patterns=torch.zeros(apart.shape).masked_fill_(apart, hidden),
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

    size:     the window really used, at most the grid.
    tokens:   [N] raster index of the tokens, in window order without padding.
    slots:    [nW*n] place in `tokens` of the token in each slot (0 for padding); None without padding.
    filled:   [N] the slot of each of `tokens`; None without padding.
    answers:  [N] the slot whose output each of `tokens` takes: `filled`, but for windows "smit".
    real:     [nW*n 1] 1 for a token, 0 for padding; None without padding.
    mask:     None where every pair of a window may attend.
    """

    size: Shape
    tokens: Tensor
    slots: Tensor | None
    filled: Tensor | None
    answers: Tensor | None
    real: Tensor | None
    mask: Mask | None


@dataclass(frozen=True)
class StageWindows:
    """All that a stage needs to know of its grid: two cuts, the ways between them, and the bias
    table's rows.

    Each way is (index, inverse): reordered[i] = list[index[i]] and list[i] = reordered[inverse[i]].
    """

    plain: WindowPartition
    shifted: WindowPartition
    enter: tuple[Tensor, Tensor]  # raster -> plain
    shift: tuple[Tensor, Tensor] | None  # plain -> shifted; None where nothing is shifted
    leave: tuple[Tensor, Tensor]  # shifted -> raster
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
    places = _places(size)
    if clipped == "monai":
        number = torch.arange(prod(size))
        if axes == "xyz":
            number = number.view(size[::-1]).permute(*reversed(range(len(size)))).flatten()
        full = _places((window,) * len(size))[:, number]
        places = full.flip(0) if axes == "xyz" else full
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    index = torch.zeros_like(offsets[0])
    for offset in offsets:
        index = index * (2 * window - 1) + offset
    return index.flatten()


def _places(size: Shape) -> Tensor:
    """[dims n] the coordinates of the slots of a window, in raster order."""
    axes = torch.meshgrid(*(torch.arange(s) for s in size), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def cut(grid: Shape, size: Shape, shift: Shape, mode: str, axes: str = "zyx") -> WindowPartition:
    """Cut `grid` into windows of `size` after moving it by -`shift`.

    mode="exact": padding slots are attended to by no token. "monai", "smit": they take part as
    zeros.
    """
    padded = tuple(-(-g // s) * s for g, s in zip(grid, size, strict=True))
    raster = torch.zeros((1,) * len(grid), dtype=torch.long)
    region = torch.zeros_like(raster)  # tokens of one window see each other within one region only
    empty = torch.zeros_like(raster, dtype=torch.bool)
    for axis, (g, p, s) in enumerate(zip(grid, padded, shift, strict=True)):
        view = [-1 if a == axis else 1 for a in range(len(grid))]
        moved = (torch.arange(p) + s).view(view)
        raster = raster * g + moved % p
        region = region * 2 + (moved >= p)
        empty = empty | (moved % p >= g)
    if mode == "exact":
        region = region * 2 + empty
    raster, region, empty = (_partition(x.expand(padded), size) for x in (raster, region, empty))

    real = ~empty.flatten()
    slots = filled = None
    if not real.all():
        filled = real.nonzero().flatten()
        slots = torch.zeros(real.numel(), dtype=torch.long)
        slots[filled] = torch.arange(len(filled))
    return WindowPartition(
        size=size,
        tokens=raster.flatten()[real],
        slots=slots,
        filled=filled,
        answers=_misplaced(padded, size, axes)[real] if mode == "smit" else filled,
        real=None if slots is None else real[:, None].float(),
        mask=_mask(region, -torch.inf if mode == "exact" else -100.0),
    )


def _misplaced(padded: Shape, size: Shape, axes: str) -> Tensor:
    """[nW*n] the slot whose output SMIT puts into each slot's place.

    Its `window_reverse` views the windows as [nX nY nZ wx wy wz] and lays them out as [nX nZ wy nY
    wx wz], read as [X Y Z]; its `window_partition` cuts [nX wx nY wy nZ wz]. The weights were
    trained through that.
    """
    if axes == "xyz":
        padded, size = padded[::-1], size[::-1]
    slots = torch.arange(prod(padded)).view(
        [p // s for p, s in zip(padded, size, strict=True)] + list(size)
    )
    laid_out = slots.permute(0, 2, 4, 1, 3, 5).flatten()
    answers = laid_out[_partition(torch.arange(prod(padded)).view(padded), size).flatten()]
    if axes == "zyx":
        return answers
    theirs = slots.permute(2, 1, 0, 5, 4, 3).flatten()  # the number there of each of our slots
    return theirs.argsort()[answers[theirs]]


def _partition(x: Tensor, size: Shape) -> Tensor:
    """[*padded] to [nW n], windows and slots in raster order."""
    split = [n for p, s in zip(x.shape, size, strict=True) for n in (p // s, s)]
    dims = len(size)
    order = [2 * a for a in range(dims)] + [2 * a + 1 for a in range(dims)]
    return x.reshape(split).permute(order).reshape(-1, prod(size))


def _mask(region: Tensor, hidden: float) -> Mask | None:
    """region: [nW n]; tokens of different regions are `hidden` from each other."""
    regions, which = region.unique(dim=0, return_inverse=True)
    return None if (regions == regions[:, :1]).all() else Mask.of(regions, which, hidden)


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
        plain = cut(grid, size, (0,) * len(grid), mode, axes)
        moves = any(shift)
        shifted = cut(grid, size, shift, mode, axes) if moves else plain
        to_shifted = plain.tokens.argsort()[shifted.tokens]
        ways = {
            "enter": (plain.tokens, plain.tokens.argsort()),
            "shift": (to_shifted, to_shifted.argsort()) if moves else None,
            "leave": (shifted.tokens.argsort(), shifted.tokens),
        }
        index = relative_index(size, window, mode, axes)
        return _to(StageWindows(plain=plain, shifted=shifted, relative=index, **ways), device)


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
    them repeatedly,
             and "all" takes its part of the order where an axis is left as it is.
    axes:    of the order of "legacy"; for "all" the weights can be put in another order instead.
    """
    turn = axes == "xyz" and merging == "legacy"
    places = [
        tuple(map(int, corner[::-1] if turn else corner)) for corner in CORNERS[len(step), merging]
    ]
    inside = [tuple(p % s for p, s in zip(place, step, strict=True)) for place in places]
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
        cells = _partition(torch.arange(prod(grid)).view(grid), step)
        raster = torch.arange(prod(step)).view(step)
        places = corners(step, merging, axes)
        index = cells[:, [int(raster[place]) for place in places]].flatten()
        once = len(set(places)) == len(places) == prod(step)
        return _to((index, index.argsort() if once else None), device)


def _to(x: Moved, device: torch.device) -> Moved:
    """`x` with every tensor in it on `device`."""
    moved: object = x.to(device) if isinstance(x, Tensor) else x
    if isinstance(x, tuple):
        moved = tuple(_to(y, device) for y in x)
    elif isinstance(x, WindowPartition | Mask | StageWindows):
        parts: dict = {name: _to(value, device) for name, value in vars(x).items()}
        moved = type(x)(**parts)
    return cast("Moved", moved)
