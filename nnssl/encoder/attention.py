"""Attention inside windows, with a bias to every pair of slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.encoder import cached
from nnssl.encoder.windows import Mask


def window_attention(
    x: Tensor, weight: Tensor, offset: Tensor | None, heads: int, bias: Tensor, mask: Mask | None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in each window, where q, k, v = x @ weight.T + offset.

    x:      [W n C], the windows of one sample after the other's.
    weight: [3C C] and offset [3C]: rows ordered as q, k, v, then heads, then channels of a head.
    bias:   [heads n n], the same for all windows.
    mask:   as in `Cut`, the same for all samples; W is a multiple of nW.
    Returns [W n C].
    """
    windows, n, channels = x.shape
    if not cached.suits(x):
        qkv = F.linear(x, weight, offset).view(windows, n, 3, heads, channels // heads)
        return _by_pytorch(*qkv.permute(2, 0, 3, 1, 4), bias, mask)
    rows = x.reshape(-1, channels).t()
    parts = weight @ rows if offset is None else torch.addmm(offset[:, None], weight, rows)
    out = cached.attention(parts.view(3, heads, channels // heads, windows, n), bias, mask)
    return out.view(channels, -1).t().view(x.shape)


def _by_pytorch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Mask | None) -> Tensor:
    """q, k, v [W heads n d] to [W n C]."""
    bias = bias[None]
    if mask is not None:
        patterns, which = mask
        bias = (bias + patterns[which][:, None]).repeat(len(q) // len(which), 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return out.transpose(1, 2).flatten(2)
