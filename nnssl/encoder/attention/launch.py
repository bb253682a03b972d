"""Launch the Triton kernels: grid, constants, and registration with autograd and compilers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from nnssl.encoder.attention import kernel
from nnssl.encoder.partition import Mask
from nnssl.types import GradContext

if TYPE_CHECKING:
    from triton.runtime.jit import KernelInterface

# Programs per multiprocessor: multiples of the 4 or 5, and 2, whose registers fit at a time, so
# that all end together. Each backward one writes a partial gradient of the bias, so there are fewer
# of these.
FORWARD, BACKWARD = 20, 4


def attention(qkv: Tensor, bias: Tensor, mask: Mask | None, parts: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v; qkv [W n 3 heads d], bias [heads n n] to [W n
    heads*d].

    qkv in fp32, bf16 or fp16; the bias and its gradient in fp32. parts: as in
    `nnssl.encoder.stream.launch`, [rows 3 heads*d]: its gradient are parts of the sum of qkv's over
    windows and slots. No compiler knows it.
    """
    rest = (None, None, 0.0) if mask is None else (mask.which, mask.regions, mask.hidden)
    if torch.compiler.is_compiling():
        return _operator(qkv, bias, *rest)
    return _Attention.apply(qkv, bias, *rest, parts)


def padded(size: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def settings(dtype: torch.dtype, n: int, d: int) -> dict[str, int]:
    """Warps and loads in flight with which the kernels keep (nearly) everything in registers."""
    if dtype == torch.float32 or (padded(n) == 64 and padded(d) > 32):
        return {"num_warps": 8, "num_stages": 1}
    return {"num_warps": 2 if padded(n) == 16 else 4, "num_stages": 2}


def shape(qkv: Tensor, masked: bool) -> dict[str, int | bool]:
    """The constants of a kernel."""
    _, n, _, heads, d = qkv.shape
    return {"N": n, "H": heads, "D": d, "BN": padded(n), "BD": padded(d), "MASKED": masked}


def _grid(qkv: Tensor, per_multiprocessor: int) -> tuple[int, int]:
    windows, _, _, heads, _ = qkv.shape
    count = 1
    if qkv.device.type == "cuda":
        count = torch.cuda.get_device_properties(qkv.device).multi_processor_count
    return heads, max(1, min(windows, count * per_multiprocessor // heads))


def _launch_attention(
    function: KernelInterface,
    grid: tuple[int, int],
    qkv: Tensor,
    bias: Tensor,
    which: Tensor | None,
    regions: Tensor | None,
    hidden: float,
    *more: Tensor | int,
    **flags: bool,
) -> None:
    masked = regions is not None
    with torch.cuda.device(qkv.device) if qkv.device.type == "cuda" else nullcontext():
        function[grid](
            qkv,
            bias,
            which if masked else qkv,
            regions if masked else qkv,
            *more,
            len(qkv),
            1 if which is None else len(which),
            qkv.shape[-1] ** -0.5,
            hidden,
            **shape(qkv, masked),
            **flags,
            **settings(qkv.dtype, qkv.shape[1], qkv.shape[-1]),
        )


def _attend_forward(
    qkv: Tensor, bias: Tensor, which: Tensor | None, regions: Tensor | None, hidden: float
) -> Tensor:
    qkv = qkv.contiguous()
    windows, n, _, heads, d = qkv.shape
    out = qkv.new_empty(windows, n, heads * d)
    _launch_attention(
        kernel.forward,
        _grid(qkv, FORWARD),
        qkv,
        bias.float().contiguous(),
        which,
        regions,
        hidden,
        out,
    )
    return out


def _attend_back(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    which: Tensor | None,
    regions: Tensor | None,
    hidden: float,
) -> tuple[Tensor, Tensor]:
    return _backward(gradient, qkv, bias, which, regions, hidden)[:2]


def _backward(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    which: Tensor | None,
    regions: Tensor | None,
    hidden: float,
    rows: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of qkv and bias, and sums [rows 3 heads*d] of the first if there are to be any."""
    qkv, gradient = qkv.contiguous(), gradient.to(qkv.dtype).contiguous()
    heads, programs = _grid(qkv, BACKWARD)
    grid = heads, min(programs, rows) if rows else programs
    to_qkv = torch.empty_like(qkv)
    sums = qkv.new_empty(rows, 3, heads * qkv.shape[-1], dtype=torch.float32) if rows else None
    parts = bias.new_empty(grid[1], *bias.shape, dtype=torch.float32)
    _launch_attention(
        kernel.backward,
        grid,
        qkv,
        bias.float().contiguous(),
        which,
        regions,
        hidden,
        gradient,
        to_qkv,
        parts,
        qkv if sums is None else sums,
        rows,
        SUMMED=rows > 0,
    )
    return to_qkv, parts.sum(0).to(bias.dtype), sums


class _Context(GradContext, Protocol):
    hidden: float
    rows: int


class _Attention(torch.autograd.Function):
    """As `_attend_forward`."""

    @staticmethod
    def forward(
        ctx: _Context,
        qkv: Tensor,
        bias: Tensor,
        which: Tensor | None,
        regions: Tensor | None,
        hidden: float,
        parts: Tensor | None,
    ) -> Tensor:
        _save_inputs(ctx, (qkv, bias, which, regions, hidden), None)
        ctx.rows = 0 if parts is None else len(parts)
        return _attend_forward(qkv, bias, which, regions, hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, Tensor | None]:
        qkv, bias, which, regions = ctx.saved_tensors
        to_qkv, to_bias, sums = _backward(gradient, qkv, bias, which, regions, ctx.hidden, ctx.rows)
        return to_qkv, to_bias, None, None, None, sums


def _save_inputs(ctx: _Context, inputs: tuple, output: Tensor | None) -> None:
    *tensors, ctx.hidden = inputs
    ctx.save_for_backward(*tensors)


# The same as operators, which torch.compile takes as they are; an eager call of one costs 30 us
# more on the CPU.
_operator = torch.library.custom_op("nnssl::window_attention", _attend_forward, mutates_args=())
_operator_back = torch.library.custom_op(
    "nnssl::window_attention_backward", _attend_back, mutates_args=()
)


@_operator.register_fake
def _(
    qkv: Tensor, bias: Tensor, which: Tensor | None, regions: Tensor | None, hidden: float
) -> Tensor:
    windows, n, _, heads, d = qkv.shape
    return qkv.new_empty(windows, n, heads * d)


@_operator_back.register_fake
def _(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    which: Tensor | None,
    regions: Tensor | None,
    hidden: float,
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _gradient(ctx: _Context, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    return *_operator_back(gradient, *ctx.saved_tensors, ctx.hidden), None, None, None


_operator.register_autograd(_gradient, setup_context=_save_inputs)
