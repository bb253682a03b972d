"""The formula of window attention, literally: slow, in the precision of its inputs, differentiable
by PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.encoder.partition import Mask

if TYPE_CHECKING:
    from jaxtyping import Float


def attention(
    qkv: Float[Tensor, "windows slots 3 heads dim"],
    bias: Float[Tensor, "heads slots slots"],
    mask: Mask | None,
) -> Float[Tensor, "windows slots channels"]:
    """softmax(q k^T / sqrt(d) + bias + mask) v; qkv [W n 3 heads d], bias [heads n n] to [W n
    heads*d].
    """
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("wihd,wjhd->whij", q, k) * qkv.shape[-1] ** -0.5 + bias
    if mask is not None:
        patterns = mask.patterns.to(scores.dtype)[mask.which]
        scores = scores + patterns.repeat(qkv.shape[0] // len(mask.which), 1, 1)[:, None]
    return torch.einsum("whij,wjhd->wihd", scores.softmax(-1), v).flatten(2)
