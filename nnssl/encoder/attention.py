"""Attention inside windows, with a bias to every pair of slots.

On CPUs PyTorch's fused attention gives no gradient to the bias, so that training falls back to whole score matrices
in memory. Here a few windows at a time pass through all steps while they are in the cache, and everything is kept
channels first ([d n] a head and window): the CPU's matrix library multiplies such products almost twice as fast.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED = 1 << 18  # scores a thread works on at a time: 1 MiB in fp32, about a core's second-level cache


def window_attention(
    x: Tensor, weight: Tensor, offset: Tensor | None, heads: int, bias: Tensor, mask: Tensor | None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in each window, where q, k, v = x @ weight.T + offset.

    x:      [W n C], the windows of one sample after the other's.
    weight: [3C C] and offset [3C]: rows ordered as q, k, v, then heads, then channels of a head.
    bias:   [heads n n], the same for all windows.
    mask:   [nW n n] or None, the same for all samples; W is a multiple of nW.
    Returns [W n C].
    """
    windows, n, channels = x.shape
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        qkv = F.linear(x, weight, offset).view(windows, n, 3, heads, channels // heads)
        return _by_pytorch(*qkv.permute(2, 0, 3, 1, 4), bias, mask)
    rows = x.reshape(-1, channels).t()
    parts = weight @ rows if offset is None else torch.addmm(offset[:, None], weight, rows)
    parts = parts.view(3, heads, channels // heads, windows, n)
    training = torch.is_grad_enabled()
    out = _Cached.apply(parts, bias, mask) if training else _forward(parts, bias, mask, None)[0]
    return out.view(channels, -1).t().view(x.shape)


def _by_pytorch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """q, k, v [W heads n d] to [W n C]."""
    bias = bias[None]
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(len(q) // len(mask), 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


class _Cached(torch.autograd.Function):
    """parts [3 heads d W n], bias, mask to [heads d W n]."""

    @staticmethod
    def forward(ctx, parts, bias, mask):
        _, heads, _, windows, n = parts.shape
        probabilities = parts.new_empty(windows, heads, n, n)
        out, by_window = _forward(parts, bias, mask, probabilities)
        ctx.save_for_backward(by_window, probabilities)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *_backward(gradient, *ctx.saved_tensors), None


def _forward(parts: Tensor, bias: Tensor, mask: Tensor | None, probabilities: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output [heads d W n], and q, k, v as [3 W heads d n]; `probabilities` [W heads n n] is filled if given."""
    _, heads, d, windows, n = parts.shape
    by_window = parts.permute(0, 3, 1, 2, 4).contiguous()
    out = parts.new_empty(heads, d, windows, n)
    step = _step(heads, n)
    scratch = parts.new_empty(min(step, windows), heads, n, n)
    for start, end, masked in _runs(windows, step, mask):
        q, k, v = by_window[:, start:end].flatten(1, 2)
        scores = scratch[: end - start]
        if masked is None:
            scores.copy_(bias)
        else:
            torch.add(bias, masked[:, None], out=scores)
        scores.flatten(0, 1).baddbmm_(q.transpose(1, 2), k, alpha=d**-0.5)
        p = torch.softmax(scores, -1, out=None if probabilities is None else probabilities[start:end])
        o = torch.bmm(v, p.flatten(0, 1).transpose(1, 2))
        out[:, :, start:end] = o.view(-1, heads, d, n).permute(1, 2, 0, 3)
    return out, by_window


def _backward(gradient: Tensor, by_window: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of parts [3 heads d W n] and bias [heads n n] from that of the output [heads d W n]."""
    _, windows, heads, d, n = by_window.shape
    to_parts = gradient.new_empty(3, heads, d, windows, n)
    to_bias = gradient.new_zeros(1, heads * n * n)
    step = _step(heads, n)
    ones = gradient.new_ones(1, step)
    for start, end, _ in _runs(windows, step, None):
        q, k, v = by_window[:, start:end].flatten(1, 2)
        p = probabilities[start:end].flatten(0, 1)
        g = gradient[:, :, start:end].permute(2, 0, 1, 3).reshape(-1, d, n)
        to_scores = torch.bmm(g.transpose(1, 2), v)
        to_scores.sub_((to_scores * p).sum(-1, keepdim=True)).mul_(p)
        to_bias.addmm_(ones[:, : end - start], to_scores.view(end - start, -1))
        to_q = torch.bmm(k, to_scores.transpose(1, 2)).mul_(d**-0.5)
        to_k = torch.bmm(q, to_scores).mul_(d**-0.5)
        for i, part in enumerate((to_q, to_k, torch.bmm(g, p))):
            to_parts[i, :, :, start:end] = part.view(-1, heads, d, n).permute(1, 2, 0, 3)
    return to_parts, to_bias.view(heads, n, n)


def _step(heads: int, n: int) -> int:
    """How many windows to work on at a time."""
    return max(1, CACHED * torch.get_num_threads() // (heads * n * n))


def _runs(windows: int, step: int, mask: Tensor | None) -> Iterator[tuple[int, int, Tensor | None]]:
    """(start, end, mask of these windows) of runs of at most `step` windows."""
    if mask is None:
        for start in range(0, windows, step):
            yield start, min(start + step, windows), None
        return
    if len(mask) < step:
        mask = mask.repeat(min(step, windows) // len(mask), 1, 1)
    for first in range(0, windows, len(mask)):
        last = min(first + len(mask), windows)
        for start in range(first, last, step):
            end = min(start + step, last)
            yield start, end, mask[start - first : end - first]
