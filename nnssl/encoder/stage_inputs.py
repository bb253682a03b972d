"""What the blocks of several stages need besides tokens, computed at once: there are many blocks,
and each would need a few kernels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from nnssl.encoder.partition import WindowPartition
from nnssl.encoder.windows import StageWindows, stage_windows
from nnssl.shapes import ceil_div
from nnssl.types import GradContext, Shape

# of a table of zeros and ones; windows of 7 x 7 x 7 would take a gigabyte
MOST_SHOWN = 1 << 23

if TYPE_CHECKING:
    from nnssl.encoder.blocks import Block, Stage

BranchScales = tuple[Tensor, Tensor]
Alike = TypeVar("Alike", Shape, torch.Size)


class StageInputs(NamedTuple):
    """What a stage needs besides its tokens.

    windows:          of the stage.
    biases:           [heads n n] of each block.
    drop_path_scales: what each block's two branches count for each sample of the batch, [B 1 1];
                      None: all of it.
    """

    windows: StageWindows
    biases: Sequence[Tensor]
    drop_path_scales: Sequence[BranchScales | None]

    def partition(self, number: int) -> WindowPartition:
        """The partition of block `number`: every second one is shifted."""
        return self.windows.shifted if number % 2 else self.windows.plain

    def of_block(self, number: int) -> tuple[WindowPartition, Tensor, BranchScales | None]:
        return self.partition(number), self.biases[number], self.drop_path_scales[number]


def stage_inputs(stages: Sequence[Stage], tokens: Tensor) -> list[StageInputs]:
    """For `stages` that follow each other, of which the first takes `tokens` [B *grid C]."""
    grid, windows = tuple(tokens.shape[1:-1]), []
    for stage in stages:
        windows.append(stage_windows(grid, stage.window, stage.mode, tokens.device, stage.axes))
        grid = ceil_div(grid, stage.downsample.step)
    biases, scales = _biases(stages, windows), _drop_path_scales(stages, tokens)
    return [StageInputs(*one) for one in zip(windows, biases, scales, strict=True)]


# -- position biases -------------------------------------------------------------------------------


def _biases(stages: Sequence[Stage], windows: Sequence[StageWindows]) -> list[list[Tensor]]:
    """Stages whose windows are alike have one look-up together."""
    found: list[list[Tensor]] = [[] for _ in stages]
    for size, numbers in _numbers_by_shape([of_stage.plain.size for of_stage in windows]).items():
        owners = [number for number in numbers for _ in stages[number].blocks]
        tables = [table for number in numbers for table in _tables(stages[number])]
        rows = (
            _LookUp.apply if torch.is_grad_enabled() else _look_up_rows
        )  # which a compiler can follow
        biases = rows(windows[numbers[0]].relative, *tables)
        for number, bias in zip(owners, biases, strict=True):
            found[number].append(bias.unflatten(1, (prod(size), prod(size))))
    return found


def _numbers_by_shape(shapes: Sequence[Alike]) -> dict[Alike, list[int]]:
    """The numbers at which each shape occurs."""
    numbers: dict[Alike, list[int]] = {}
    for number, shape in enumerate(shapes):
        numbers.setdefault(shape, []).append(number)
    return numbers


def blocks_of(stage: Stage) -> Sequence[Block]:
    """The element type that ModuleList does not declare."""
    return cast("Sequence[Block]", stage.blocks)


def _tables(stage: Stage) -> list[Tensor]:
    return [block.attn.relative_position_bias_table for block in blocks_of(stage)]


def _look_up_rows(index: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    joined = torch.cat([table.t() for table in tables])
    return joined.index_select(1, index).split([table.shape[1] for table in tables])


class _Shapes(GradContext, Protocol):
    shapes: list[torch.Size]


class _LookUp(torch.autograd.Function):
    """Rows `index` [P] of each table [R heads]: a list of [heads P].

    The gradient of a row is a sum over the pairs that show it. On a GPU it is a product with zeros
    and ones: a sum of scattered numbers would depend on their order.
    """

    @staticmethod
    def forward(ctx: _Shapes, index: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(index)
        ctx.shapes = [table.shape for table in tables]
        return _look_up_rows(index, *tables)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Shapes, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        found: list[Tensor | None] = [None] * len(gradients)
        for (rows, _), numbers in _numbers_by_shape(ctx.shapes).items():
            by_pair = torch.stack([gradients[number] for number in numbers]).transpose(1, 2)
            for number, gradient in zip(numbers, _row_sums(by_pair, index, rows), strict=True):
                found[number] = gradient
        return None, *found


def _row_sums(by_pair: Tensor, index: Tensor, rows: int) -> Tensor:
    """[T P heads] to [T R heads]: row r is the sum over the pairs whose `index` [P] is r."""
    if by_pair.device.type == "cpu":
        sums = by_pair.new_zeros(len(by_pair), rows, by_pair.shape[2])
        return sums.scatter_add_(1, index[:, None].expand_as(by_pair), by_pair)
    if rows * len(index) > MOST_SHOWN:  # sorts first, so that its sums have an order as well
        sums = by_pair.new_zeros(rows, len(by_pair), by_pair.shape[2])
        return sums.index_put_((index,), by_pair.transpose(0, 1), accumulate=True).transpose(0, 1)
    return torch.matmul(_row_indicators(index, rows, by_pair.dtype), by_pair)


@lru_cache(maxsize=64)  # of the indices that `stage_windows` keeps
def _row_indicators(index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """[R P]: 1 where a pair shows a row."""
    with torch.inference_mode(False):
        return (torch.arange(rows, device=index.device)[:, None] == index).to(dtype)


# -- stochastic depth ------------------------------------------------------------------------------


def _drop_path_scales(stages: Sequence[Stage], tokens: Tensor) -> list[list[BranchScales | None]]:
    """By stage and block. All branches draw at once, the first stage's first, those that are never
    left out as well.
    """
    drawing = [stage for stage in stages if stage.training and any(stage.rates)]
    rates = tuple(rate for stage in drawing for rate in stage.rates for _ in range(2))
    branches = iter(draw_drop_path_scales(rates, tokens).unbind() if rates else ())
    found: list[list[BranchScales | None]] = []
    for stage in stages:
        if stage not in drawing:
            found.append([None] * len(stage.blocks))
            continue
        both = [(next(branches), next(branches)) for _ in stage.rates]
        pairs = zip(both, stage.rates, strict=True)
        found.append([scales if rate else None for scales, rate in pairs])
    return found


def draw_drop_path_scales(rates: tuple[float, ...], tokens: Tensor) -> Tensor:
    """What residual branches of R `rates` count for each of a batch [B ... C]: [R B 1 1].

    0 for the random part that is left out, else 1 / (1 - rate): stochastic depth (arXiv
    1603.09382).
    """
    thresholds, counted = _constants(rates, tokens.device, tokens.dtype)
    drawn = torch.rand(len(rates), len(tokens), 1, 1, device=tokens.device)
    return (drawn >= thresholds) * counted


@torch.compiler.assume_constant_result
def _constants(
    rates: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """[R 1 1 1] each: the rates, and what a branch counts that is not left out."""
    return _constants_once(rates, device, dtype)


@lru_cache(maxsize=64)
def _constants_once(
    rates: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        thresholds = torch.tensor(rates).view(-1, 1, 1, 1)
        return thresholds.to(device), (1 / (1 - thresholds)).to(device, dtype)
