"""Window arithmetic: which token of a grid sits in which window, and who may attend to whom.

Tokens of a stage travel as one list [B N C]. A `Cut` is one way to cut the grid into windows; the list is
kept in the order of the cut in use ("window order"), so that a block needs one reordering instead of pad,
roll, partition, reverse and roll. All of this depends on the grid alone and is made once per grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from nnssl.types import Shape

Mask = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cut:
    """One way to cut a grid into windows of n slots. A slot holds a token or, at the border, padding.

    size:     the window really used, at most the grid.
    tokens:   [N] raster index of the tokens, in window order without padding.
    slots:    [nW*n] place in `tokens` of the token in each slot (0 for padding); None without padding.
    filled:   [N] the slot of each of `tokens`; None without padding.
    real:     [nW*n 1] 1 for a token, 0 for padding; None without padding.
    mask:     None where every pair of a window may attend, else (patterns [P n n], which [nW]): a window adds
              patterns[which] to its scores, 0 where a pair may attend. There are few patterns, whatever the grid.
    """

    size: Shape
    tokens: Tensor
    slots: Tensor | None
    filled: Tensor | None
    real: Tensor | None
    mask: Mask | None


@dataclass(frozen=True)
class StageWindows:
    """All that a stage needs to know of its grid: two cuts, the ways between them, and the bias table's rows.

    Each way is (index, inverse): reordered[i] = list[index[i]] and list[i] = reordered[inverse[i]].
    """

    plain: Cut
    shifted: Cut
    enter: tuple[Tensor, Tensor]  # raster -> plain
    shift: tuple[Tensor, Tensor] | None  # plain -> shifted; None where nothing is shifted
    leave: tuple[Tensor, Tensor]  # shifted -> raster
    relative: Tensor  # [n*n] row of the relative position bias table for each pair of slots


def window_and_shift(grid: Shape, window: int) -> tuple[Shape, Shape]:
    """A window is clipped to the grid; an axis that fits into one window is not shifted."""
    size = tuple(min(window, g) for g in grid)
    shift = tuple(window // 2 if g > window else 0 for g in grid)
    return size, shift


def relative_index(size: Shape, window: int, clipped: str) -> Tensor:
    """[n*n] row of the (2*window-1)^dims table for each pair (query, key) of a window of `size`.

    clipped="exact": the pair's true offset. clipped="monai": the top-left corner of the full window's index,
    which for a clipped window is another offset's row (MONAI 1.6.1, `WindowAttention.forward`).
    """
    frame = size if clipped == "exact" else (window,) * len(size)
    axes = torch.meshgrid(*(torch.arange(s) for s in frame), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes])
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    index = torch.zeros_like(offsets[0])
    for offset in offsets:
        index = index * (2 * window - 1) + offset
    n = prod(size)
    return index[:n, :n].flatten()


def cut(grid: Shape, size: Shape, shift: Shape, padding: str) -> Cut:
    """Cut `grid` into windows of `size` after moving it by -`shift`.

    padding="exact": padding slots are attended to by no token. padding="monai": they take part as zeros.
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
    if padding == "exact":
        region = region * 2 + empty
    raster, region, empty = (_partition(x.expand(padded), size) for x in (raster, region, empty))

    real = ~empty.flatten()
    slots = filled = None
    if not real.all():
        filled = real.nonzero().flatten()
        slots = torch.zeros(real.numel(), dtype=torch.long)
        slots[filled] = torch.arange(len(filled))
    return Cut(
        size=size,
        tokens=raster.flatten()[real],
        slots=slots,
        filled=filled,
        real=None if slots is None else real[:, None].float(),
        mask=_mask(region, -torch.inf if padding == "exact" else -100.0),
    )


def _partition(x: Tensor, size: Shape) -> Tensor:
    """[*padded] to [nW n], windows and slots in raster order."""
    split = [n for p, s in zip(x.shape, size, strict=True) for n in (p // s, s)]
    dims = len(size)
    order = [2 * a for a in range(dims)] + [2 * a + 1 for a in range(dims)]
    return x.reshape(split).permute(order).reshape(-1, prod(size))


def _mask(region: Tensor, hidden: float) -> Mask | None:
    """region: [nW n]; tokens of different regions are `hidden` from each other."""
    patterns, which = region.unique(dim=0, return_inverse=True)
    apart = patterns[:, :, None] != patterns[:, None, :]
    if not apart.any():
        return None
    return torch.zeros(apart.shape).masked_fill_(apart, hidden), which


@torch.compiler.assume_constant_result
def stage_windows(grid: Shape, window: int, mode: str, device: torch.device) -> StageWindows:
    """`StageWindows` of a token grid; mode "exact" or "monai" as in `SwinConfig.windows`. Kept for reuse."""
    return _stage_windows(grid, window, mode, device)


@lru_cache(maxsize=64)
def _stage_windows(grid: Shape, window: int, mode: str, device: torch.device) -> StageWindows:
    # Tensors born in inference mode could never serve a later training step.
    with torch.inference_mode(False):
        size, shift = window_and_shift(grid, window)
        plain = cut(grid, size, (0,) * len(grid), mode)
        moves = any(shift)
        shifted = cut(grid, size, shift, mode) if moves else plain
        to_shifted = plain.tokens.argsort()[shifted.tokens]
        ways = {
            "enter": (plain.tokens, plain.tokens.argsort()),
            "shift": (to_shifted, to_shifted.argsort()) if moves else None,
            "leave": (shifted.tokens.argsort(), shifted.tokens),
        }
        index = relative_index(size, window, mode)
        return _to(StageWindows(plain=plain, shifted=shifted, relative=index, **ways), device)


def corners(step: Shape) -> list[Shape]:
    """Where the tokens that a merge joins lie in their cell of `step`, in the order in which they are joined.

    The order is MONAI's, the first axis first; a merge that leaves an axis as it is takes its part of the order.
    """
    order = (0, 4, 2, 1, 6, 5, 3, 7) if len(step) == 3 else (0, 2, 1, 3)  # bits: one an axis, the last one lowest
    places = [tuple(corner >> axis & 1 for axis in reversed(range(len(step)))) for corner in order]
    return [place for place in places if all(p < s for p, s in zip(place, step, strict=True))]


@torch.compiler.assume_constant_result
def merging_order(grid: Shape, step: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """The way (index, inverse) from raster order of a grid to one where the tokens of a cell follow each other.

    `step` divides `grid`; a cell has prod(step) tokens, in the order of `corners`.
    """
    return _merging_order(grid, step, device)


@lru_cache(maxsize=64)
def _merging_order(grid: Shape, step: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        cells = _partition(torch.arange(prod(grid)).view(grid), step)
        raster = torch.arange(prod(step)).view(step)
        index = cells[:, [int(raster[place]) for place in corners(step)]].flatten()
        return _to((index, index.argsort()), device)


def _to(x, device: torch.device):
    """`x` with every tensor in it on `device`."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, tuple):
        return tuple(_to(y, device) for y in x)
    if isinstance(x, Cut | StageWindows):
        return type(x)(**{name: _to(value, device) for name, value in vars(x).items()})
    return x
