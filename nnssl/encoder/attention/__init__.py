"""Attention inside windows, with a bias for every pair of slots.

`nnssl.cpu.window_attention`: CPUs, a few windows at a time through all steps. Here:
kernel     NVIDIA GPUs: one Triton kernel forward and one backward; `launch` starts them, `choice`
           says when.
fused      everything else: PyTorch's fused attention, without a copy of the mask for every window.
reference  the formula, word for word: what the kernel is compared with, and what an exported
           network computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.cpu import window_attention as cached
from nnssl.encoder.attention import choice, fused, reference
from nnssl.encoder.partition import Mask

if TYPE_CHECKING:
    from jaxtyping import Float

# PyTorch 2.6 has no word for it
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def window_attention(
    x: Float[Tensor, "windows slots channels"],
    weight: Float[Tensor, "threefold channels"],
    offset: Float[Tensor, " threefold"] | None,
    heads: int,
    bias: Float[Tensor, "heads slots slots"],
    mask: Mask | None,
    parts: Float[Tensor, "rows 3 channels"] | None = None,
) -> Float[Tensor, "windows slots channels"]:
    """softmax(q k^T / sqrt(d) + bias + mask) v in each window, where q, k, v = x @ weight.T +
    offset.

    x:      [W n C], the windows of one sample after the other's.
    weight: [3C C] and offset [3C]: rows ordered as q, k, v, then heads, then channels of a head.
    bias:   [heads n n], the same for all windows.
    mask:   as in `WindowPartition`, the same for all samples; W is a multiple of nW.
    parts:  [rows 3 C], of which nothing is read: where the Triton kernel is supported, the offset's
            gradient arrives there, in parts (`nnssl.encoder.stream`); elsewhere at the offset.
    Returns [W n C].
    """
    if cached.is_supported(x):
        return _cached(x, weight, offset, heads, bias, mask)
    if parts is not None and offset is not None and _is_kernel_supported(_split(x, heads)):
        from nnssl.encoder.attention import launch

        qkv = _split(F.linear(x, weight, offset.detach()), 3, heads)
        return launch.attention(qkv, bias, mask, parts)
    qkv = _split(F.linear(x, weight, offset), 3, heads)
    if _is_exporting():
        return reference.attention(qkv, bias, mask)
    if _is_kernel_supported(qkv):
        from nnssl.encoder.attention import launch  # Triton comes with PyTorch for CUDA only

        return launch.attention(qkv, bias, mask)
    return fused.attention(qkv, bias, mask)


def _split(x: Tensor, *parts: int) -> Tensor:
    """[W n parts*d] to [W n *parts d]."""
    return x.unflatten(-1, (*parts, -1))


def _is_kernel_supported(x: Tensor) -> bool:
    """For [W n ... heads d]."""
    heads, d = x.shape[-2:]
    return choice.is_supported(x.device, x.dtype, x.shape[1], heads, d)


def _cached(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    heads: int,
    bias: Tensor,
    mask: Mask | None,
) -> Tensor:
    """The products have their channels first, as `nnssl.cpu.window_attention` wants them."""
    windows, n, channels = x.shape
    rows = x.reshape(-1, channels).t()
    parts = weight @ rows if offset is None else torch.addmm(offset[:, None], weight, rows)
    out = cached.attention(parts.view(3, heads, channels // heads, windows, n), bias, mask)
    return out.view(channels, -1).t().view(x.shape)
