"""The parts of a Swin: patch embedding, window attention, blocks, stages, merging.

Module names follow `monai.networks.nets.swin_unetr` 1.6.1.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnssl.encoder import stream
from nnssl.encoder.attention import window_attention
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.partition import Reordered, WindowPartition
from nnssl.encoder.stage_inputs import StageInputs
from nnssl.encoder.windows import Reordering, StageWindows, corners, merging_order
from nnssl.shapes import floor_div
from nnssl.types import GradContext, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

HALF = (torch.bfloat16, torch.float16)


def _reorder(x: Tensor, way: tuple[Tensor, Tensor | None]) -> Tensor:
    """[B N C] to [B N C] by a reordering of `StageWindows`, or by `merging_order`, which may have
    no inverse.
    """
    index, inverse = way
    return x.index_select(1, index) if inverse is None else Reordered.apply(x, index, inverse, 1)


def inverse(way: Reordering) -> Reordering:
    return way[1], way[0]


def to_slots(x: Tensor, partition: WindowPartition, pads_are_zero: bool) -> Tensor:
    """Tokens [B N C] to slots [B nW*n C]."""
    if partition.token_of_slot is None or partition.occupied is None:
        return x
    # A padding slot shows the first token, and no gradient leaves it: it is zeroed, or nobody
    # attends to it.
    x = Reordered.apply(x, partition.token_of_slot, partition.slot_of_token, 1)
    return x * partition.occupied.to(x.dtype) if pads_are_zero else x


def from_slots(x: Tensor, partition: WindowPartition) -> Tensor:
    """Slots [B nW*n C] to tokens [B N C]."""
    slots = partition.output_slot
    return x if slots is None else x.index_select(1, slots)


class WindowAttention(nn.Module):
    def __init__(
        self, dim: int, heads: int, window: int, spatial_dims: int, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** spatial_dims, heads)
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch slots channels"],
        partition: WindowPartition,
        bias: Float[Tensor, "heads window window"],
    ) -> Float[Tensor, "batch slots channels"]:
        """Slots [B nW*n C] to slots [B nW*n C], each window by itself; bias [heads n n]."""
        return self.proj(self.attend(x, partition, bias))

    def attend(
        self, x: Tensor, partition: WindowPartition, bias: Tensor, parts: Tensor | None = None
    ) -> Tensor:
        """The same without the last layer; `parts` as in `window_attention`."""
        windows = x.view(-1, prod(partition.size), x.shape[-1])
        weight, offset = self.qkv.weight, self.qkv.bias
        attended = window_attention(
            windows, weight, offset, self.heads, bias, partition.mask, parts
        )
        return attended.view(x.shape)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, config: SwinConfig) -> None:
        super().__init__()
        self.pads_are_zero = config.windows != "exact"
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, config.window, config.spatial_dims, config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(
        self,
        x: Tensor,
        partition: WindowPartition,
        bias: Tensor,
        drop_path_scales: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tokens [B N C] in the window order of `partition`; bias [heads n n].

        drop_path_scales: as in `StageInputs`.
        """
        first, second = drop_path_scales or (None, None)
        slots = to_slots(self.norm1(x), partition, self.pads_are_zero)
        attended = from_slots(self.attn(slots, partition, bias), partition)
        x = _added(x, attended, first)
        return _added(x, self.mlp(self.norm2(x)), second)


class _Added(torch.autograd.Function):
    """x + branch * scale, for `scale` without gradient: a kernel each way."""

    @staticmethod
    def forward(ctx: GradContext, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(x, branch, scale)

    @staticmethod
    def backward(ctx: GradContext, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient, gradient * scale, None


def _added(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return x + branch
    return _Added.apply(x, branch.to(x.dtype), scale.to(x.dtype))


def _padded_grid(x: Tensor, step: Shape, behind: int) -> Tensor:
    """`x` with zeros at the ends of its grid up to multiples of `step`; `behind` axes follow those
    of the grid.
    """
    end = x.ndim - behind
    grid = x.shape[end - len(step) : end]
    missing = [-g % s for g, s in zip(grid, step, strict=True)]
    if not any(missing):
        return x
    ends = (n for m in reversed(missing) for n in (0, m))
    return F.pad(x, (*(0, 0) * behind, *ends))


class PatchMerging(nn.Module):
    """Joins the tokens of a cell into one of twice the width, in the order of `windows.corners`.

    A cell has 2^d tokens, or fewer where `step` leaves an axis as it is. Then the reduction of
    merging "all" has a bias, which a pretrained merge's norm is folded into (`adapt`).
    """

    def __init__(self, dim: int, step: Shape, config: SwinConfig) -> None:
        super().__init__()
        self.step, self.merging, self.axes = step, config.merging, config.axes
        joined = len(corners(step, self.merging, self.axes)) * dim
        self.norm = nn.LayerNorm(joined)
        self.reduction = nn.Linear(joined, 2 * dim, bias=1 in step and self.merging == "all")

    def forward(
        self, x: Float[Tensor, "batch *grid channels"]
    ) -> Float[Tensor, "batch *merged wider"]:
        """[B *grid C] to [B *ceil(grid/step) 2C]; what is missing to a multiple of the step is
        zeros.
        """
        x = _padded_grid(x, self.step, behind=1)
        grid = tuple(x.shape[1:-1])
        order = merging_order(grid, self.step, x.device, self.merging, self.axes)
        neighbours = _reorder(x.flatten(1, -2), order)
        cells = floor_div(grid, self.step)
        return self.reduction(self.norm(neighbours.view(x.shape[0], *cells, -1)))


class Stage(nn.Module):
    def __init__(
        self, dim: int, heads: int, drop_path: list[float], step: Shape, config: SwinConfig
    ) -> None:
        super().__init__()
        self.window, self.mode, self.axes = config.window, config.windows, config.axes
        self.blocks = nn.ModuleList(Block(dim, heads, config) for _ in drop_path)
        self.rates = tuple(drop_path)
        self.downsample = PatchMerging(dim, step, config)

    def forward(
        self, x: Float[Tensor, "batch *grid channels"], inputs: StageInputs, checkpointing: bool
    ) -> Float[Tensor, "batch *grid channels"]:
        """[B *grid C] to the same, before merging; `inputs` for this stage and x."""
        recompute = checkpointing and self.training
        if not recompute and stream.is_supported(self, x):
            return stream.through(self, x.flatten(1, -2), inputs).view(x.shape)
        tokens = x.flatten(1, -2)
        for number, block in enumerate(self.blocks):
            way = self.way_to(number, inputs.windows)
            tokens = tokens if way is None else _reorder(tokens, way)
            rest = inputs.of_block(number)
            if recompute:
                tokens = checkpoint(block, tokens, *rest, use_reentrant=False)
            else:
                tokens = block(tokens, *rest)
        return _reorder(tokens, self.way_out(inputs.windows)).view(x.shape)

    def way_to(self, number: int, windows: StageWindows) -> Reordering | None:
        """From the order of the block before, or the raster, to that of block `number`."""
        if number == 0:
            return windows.raster_to_plain
        way = windows.plain_to_shifted
        return way if way is None or number % 2 else inverse(way)

    def way_out(self, windows: StageWindows) -> Reordering:
        """From the order of the last block to the raster."""
        if len(self.blocks) % 2 == 0:
            return windows.shifted_to_raster
        return inverse(windows.raster_to_plain)


class PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.step = config.step(0)
        convolution = nn.Conv3d if config.spatial_dims == 3 else nn.Conv2d
        # PyTorch declares kernels of a known number of axes
        make = cast("Callable[..., nn.Conv2d | nn.Conv3d]", convolution)
        self.proj = make(config.in_channels, config.embed_dim, self.step, stride=self.step)
        self.norm = nn.LayerNorm(config.embed_dim) if config.patch_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "batch *grid width"]:
        """[B C *spatial] to tokens [B *ceil(spatial/step) E]; what is missing to a multiple is
        zeros.
        """
        return self.norm(self._project(_padded_grid(x, self.step, behind=0)))

    def _project(self, x: Tensor) -> Tensor:
        """The convolution, as one matrix product that leaves the channels last."""
        grid = floor_div(x.shape[2:], self.step)
        patches, dtype = _patches(x, grid, self.step), self.proj.weight.dtype
        if dtype in HALF:  # cast and reordering are one kernel
            patches = patches.to(dtype, memory_format=torch.contiguous_format)
        patches = patches.reshape(x.shape[0], *grid, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def _patches(x: Tensor, grid: Sequence[int], step: Shape) -> Tensor:
    """[B C *(grid * step)] to a view [B *grid C *step]."""
    split = (n for pair in zip(grid, step, strict=True) for n in pair)
    dims = len(grid)
    cells, inner = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return x.view(*x.shape[:2], *split).permute(0, *cells, 1, *inner)


def initialise(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases, as in the Swin paper's code."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
