"""Attention for CPUs that passes a few windows at a time through all its steps.

What lies between two matrix products then stays in the cache, where PyTorch's own sequence writes
it to memory and reads it back, several times over. PyTorch's fused attention is no help here: on
CPUs it gives no gradient to the bias. Products with few channels are laid out channels first, which
the matrix library does almost twice as fast.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nnssl.types import GradContext

# values that a thread works on at a time: 1 MiB in fp32, about a core's second-level cache
CACHED = 1 << 18


class MaskLike(Protocol):
    """`nnssl.encoder.partition.Mask`: window w adds patterns[which[w]], [P n n], to its scores."""

    @property
    def patterns(self) -> Tensor: ...

    @property
    def which(self) -> Tensor: ...


def is_supported(x: Tensor) -> bool:
    """Whether this attention is the right one for `x`: on a CPU, in one precision, not traced by a
    compiler.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def attention(parts: Tensor, bias: Tensor, mask: MaskLike | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in each window.

    parts: [3 heads d W n], that is q, k and v, the windows of one sample after the other's.
    bias:  [heads n n], the same for all windows.
    mask:  as in `nnssl.encoder.partition.WindowPartition`, the same for all samples; W is a
           multiple of nW.
    Returns [heads d W n].
    """
    if torch.is_grad_enabled():
        return _Attention.apply(parts, bias, mask)
    return _attend_in_chunks(parts, bias, mask, None)[0]


def _chunk_size(values: int) -> int:
    """How many items of so many values each to work on at a time."""
    return max(1, CACHED * torch.get_num_threads() // values)


class _Attention(torch.autograd.Function):
    """parts [3 heads d W n], bias, mask to [heads d W n]."""

    @staticmethod
    def forward(ctx: GradContext, parts: Tensor, bias: Tensor, mask: MaskLike | None) -> Tensor:
        _, heads, _, windows, n = parts.shape
        probabilities = parts.new_empty(windows, heads, n, n)
        out, by_window = _attend_in_chunks(parts, bias, mask, probabilities)
        ctx.save_for_backward(by_window, probabilities)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: GradContext, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_window, probabilities = ctx.saved_tensors
        return *_attend_back(gradient, by_window, probabilities), None


def _attend_in_chunks(
    parts: Tensor, bias: Tensor, mask: MaskLike | None, probabilities: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output [heads d W n], and q, k, v as [3 W heads d n]; `probabilities` [W heads n n] is
    filled if given.
    """
    _, heads, d, windows, n = parts.shape
    by_window = parts.permute(0, 3, 1, 2, 4).contiguous()
    out = parts.new_empty(heads, d, windows, n)
    step = _chunk_size(heads * n * n)
    scratch = parts.new_empty(min(step, windows), heads, n, n)
    which = None if mask is None else mask.which.repeat(windows // len(mask.which))
    for start in range(0, windows, step):
        end = min(start + step, windows)
        q, k, v = by_window[:, start:end].flatten(1, 2)
        scores = scratch[: end - start]
        if mask is None or which is None:
            scores.copy_(bias)
        else:
            torch.add(bias, mask.patterns[which[start:end], None], out=scores)
        scores.flatten(0, 1).baddbmm_(q.transpose(1, 2), k, alpha=d**-0.5)
        p = torch.softmax(
            scores, -1, out=None if probabilities is None else probabilities[start:end]
        )
        o = torch.bmm(v, p.flatten(0, 1).transpose(1, 2))
        out[:, :, start:end] = o.view(-1, heads, d, n).permute(1, 2, 0, 3)
    return out, by_window


def _attend_back(
    gradient: Tensor, by_window: Tensor, probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of parts [3 heads d W n] and bias [heads n n] from that of the output [heads d W
    n].
    """
    _, windows, heads, d, n = by_window.shape
    to_parts = gradient.new_empty(3, heads, d, windows, n)
    to_bias = gradient.new_zeros(1, heads * n * n)
    step = _chunk_size(heads * n * n)
    ones = gradient.new_ones(1, step)
    for start in range(0, windows, step):
        end = min(start + step, windows)
        q, k, v = by_window[:, start:end].flatten(1, 2)
        p = probabilities[start:end].flatten(0, 1)
        g = gradient[:, :, start:end].permute(2, 0, 1, 3).reshape(-1, d, n)
        to_p = torch.bmm(g.transpose(1, 2), v)
        to_scores = torch.ops.aten._softmax_backward_data(to_p, p, -1, p.dtype)
        to_bias.addmm_(ones[:, : end - start], to_scores.view(end - start, -1))
        to_q = torch.baddbmm(q, k, to_scores.transpose(1, 2), beta=0, alpha=d**-0.5)
        to_k = torch.baddbmm(k, q, to_scores, beta=0, alpha=d**-0.5)
        for i, part in enumerate((to_q, to_k, torch.bmm(g, p))):
            to_parts[i, :, :, start:end] = part.view(-1, heads, d, n).permute(1, 2, 0, 3)
    return to_parts, to_bias.view(heads, n, n)
