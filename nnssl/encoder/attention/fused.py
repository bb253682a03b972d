"""PyTorch's fused attention (`scaled_dot_product_attention`) for windows.

It takes one mask for all windows of a call, or a copy of it for each. So the windows are sorted by
the pattern of their mask and each pattern is a call, or several: its backward pass keeps a gradient
of the bias for every window of a call, and fails beyond 65,535 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.encoder.partition import Mask, Reordered

if TYPE_CHECKING:
    from jaxtyping import Float

MOST_WINDOWS = 1 << 15
MOST_SCORES = 1 << 26  # of a call: 256 MiB of gradients in fp32


def attention(
    qkv: Float[Tensor, "windows slots 3 heads dim"],
    bias: Float[Tensor, "heads slots slots"],
    mask: Mask | None,
) -> Float[Tensor, "windows slots channels"]:
    """softmax(q k^T / sqrt(d) + bias + mask) v; qkv [W n 3 heads d], bias [heads n n] to [W n
    heads*d].
    """
    if mask is None:
        return torch.cat(_calls(qkv, bias))
    order, inverse = _by_pattern(mask, len(qkv))
    samples = len(qkv) // len(mask.which)
    groups = Reordered.apply(qkv, order, inverse, 0).split(
        [count * samples for count in mask.counts]
    )
    outputs = []
    for group, pattern in zip(groups, mask.patterns, strict=True):
        outputs += _calls(group, bias + pattern)
    return Reordered.apply(torch.cat(outputs), inverse, order, 0)


def _by_pattern(mask: Mask, windows: int) -> tuple[Tensor, Tensor]:
    """[W] the windows of all samples sorted by the pattern of their mask, and the inverse."""
    samples = torch.arange(windows // len(mask.which), device=mask.order.device)
    order = (mask.order[:, None] + samples * len(mask.which)).flatten()
    inverse = (mask.rank * len(samples) + samples[:, None]).flatten()
    return order, inverse


def _calls(qkv: Tensor, bias: Tensor) -> list[Tensor]:
    """The outputs of one call for all windows, or of several where that would be too large."""
    _, n, _, heads, _ = qkv.shape
    most = max(1, min(MOST_WINDOWS, MOST_SCORES // (heads * n * n)))
    return [_call(part, bias) for part in qkv.split(most)]


def _call(qkv: Tensor, bias: Tensor) -> Tensor:
    """[W n 3 heads d] with the same bias [heads n n] for all to [W n heads*d]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
    return attended.transpose(1, 2).flatten(2)
