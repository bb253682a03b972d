"""Launch the Triton kernels of the residual stream, with their autograd functions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.stream import kernel
from nnssl.types import GradContext

if TYPE_CHECKING:
    from triton.runtime.jit import KernelInterface

TILE = 2048  # numbers of a tile, at least one row
PROGRAMS = 4  # per multiprocessor


def programs(x: Tensor) -> int:
    """How many divide the rows of `x` [B N C]; each gives one partial sum of the gradients."""
    count = 1
    if x.device.type == "cuda":
        count = torch.cuda.get_device_properties(x.device).multi_processor_count * PROGRAMS
    return max(1, min(count, -(-x.shape[0] * x.shape[1] // _tile_sizes(x)["BR"])))


def added_norm(
    x: Tensor,
    branch: Tensor | None,
    kept: Tensor | None,
    order: Tensor | None,
    norm: nn.LayerNorm | None,
    parts: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """(x + branch * kept)[:, order], and the layer norm of that if there is a norm.

    x, branch: [B N C] in one precision; kept [B 1 1]; order [N], a permutation.
    parts:     [programs 3 C], of which nothing is read. Its gradient are those of the norm's scale
    and offset and of the bias with which the branch ended, in parts, one row per program, in fp32.
    """
    scale, offset = (x, x) if norm is None else (norm.weight.detach(), norm.bias.detach())
    return _AddedNorm.apply(x, branch, kept, order, scale, offset, parts, norm is not None)


def gelu(x: Tensor, parts: Tensor) -> Tensor:
    """GELU of [B N C]; the gradient of `parts` [programs *], C numbers each, are parts of that of
    the bias with which x ended.
    """
    return _Gelu.apply(x, parts)


def _tile_sizes(x: Tensor) -> dict[str, int]:
    channels = x.shape[-1]
    padded = max(16, 1 << (channels - 1).bit_length())
    return {"C": channels, "BC": padded, "BR": max(1, TILE // padded)}


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _launch_over_rows(
    function: KernelInterface,
    grid: int,
    x: Tensor,
    tensors: tuple,
    numbers: tuple,
    **flags: bool,
) -> None:
    """A tensor that is None is not read: any other stands in for it."""
    with _on(x.device):
        function[(grid,)](
            *(x if tensor is None else tensor for tensor in tensors),
            x.shape[1],
            x.shape[0] * x.shape[1],
            *numbers,
            **_tile_sizes(x),
            **flags,
            num_warps=4 if x.shape[-1] <= 512 else 8,
        )


class _NormContext(GradContext, Protocol):
    flags: dict[str, bool]
    programs: int


class _GeluContext(GradContext, Protocol):
    shape: torch.Size


class _AddedNorm(torch.autograd.Function):
    """As `added_norm`."""

    @staticmethod
    def forward(
        ctx: _NormContext,
        x: Tensor,
        branch: Tensor | None,
        kept: Tensor | None,
        order: Tensor | None,
        scale: Tensor,
        offset: Tensor,
        parts: Tensor,
        norms: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        x, branch = x.contiguous(), None if branch is None else branch.contiguous()
        ctx.flags = {
            "ADDS": branch is not None,
            "DROPS": kept is not None,
            "MOVES": order is not None,
            "NORMS": norms,
        }
        total, out = torch.empty_like(x), torch.empty_like(x) if norms else None
        mean, rstd = x.new_empty(2, x.shape[0] * x.shape[1], dtype=torch.float32)
        tensors = (x, branch, kept, order, scale, offset, total, out, mean, rstd)
        _launch_over_rows(kernel.forward, len(parts), x, tensors, (EPS,), **ctx.flags)
        ctx.programs = len(parts)
        ctx.save_for_backward(total, mean, rstd, scale, kept, order)
        return total, out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: _NormContext, to_total: Tensor | None, to_out: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, mean, rstd, scale, kept, order = ctx.saved_tensors
        to_total, to_out = (
            None if g is None else g.to(total.dtype).contiguous() for g in (to_total, to_out)
        )
        to_x = torch.empty_like(total)
        to_branch = torch.empty_like(total) if ctx.flags["DROPS"] else to_x
        parts = total.new_empty(ctx.programs, 3, total.shape[-1], dtype=torch.float32)
        flags = {**ctx.flags, "NORMS": to_out is not None, "FLOWS": to_total is not None}
        tensors = (total, mean, rstd, scale, kept, order, to_total, to_out, to_x, to_branch, parts)
        _launch_over_rows(kernel.backward, ctx.programs, total, tensors, (), **flags)
        nothing = None, None
        return to_x, to_branch if ctx.flags["ADDS"] else None, *nothing, *nothing, parts, None


class _Gelu(torch.autograd.Function):
    """As `gelu`."""

    @staticmethod
    def forward(ctx: _GeluContext, x: Tensor, parts: Tensor) -> Tensor:
        ctx.shape = parts.shape
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _GeluContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        x, gradient = x.contiguous(), gradient.to(x.dtype).contiguous()
        to_x, channels = torch.empty_like(x), x.shape[-1]
        parts = x.new_empty(ctx.shape[0], channels, dtype=torch.float32)
        block = min(128, max(16, 1 << (channels - 1).bit_length()))
        grid = len(parts), -(-channels // block)
        with _on(x.device):
            kernel.gelu_backward[grid](
                x, gradient, to_x, parts, x.numel() // channels,
                C=channels, BC=block, BR=TILE // block,
                num_warps=4,  # pyright: ignore[reportCallIssue]
            )  # fmt: skip
        return to_x, parts.view(ctx.shape)


EPS = 1e-5  # PyTorch's layer norm's
