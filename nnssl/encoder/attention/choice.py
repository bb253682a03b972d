"""Whether the Triton kernel of window attention can be used: it is tried on a small input of each
shape, once (`nnssl.encoder.kernel_check`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from nnssl.encoder.attention import reference
from nnssl.encoder.kernel_check import (
    TOLERANCES,
    as_in_training,
    fault,
    keep_largest,
    warn_once,
)
from nnssl.encoder.partition import Mask
from nnssl.encoder.windows import moved

MOST_SLOTS, MOST_CHANNELS = 64, 128  # of a window, and of a head


@torch.compiler.assume_constant_result
def is_supported(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> bool:
    """For windows of n slots and heads of d channels; False, after a warning, where it should be
    and is not.
    """
    if device.type != "cuda" or dtype not in TOLERANCES or n > MOST_SLOTS or d > MOST_CHANNELS:
        return False
    return _tried(device, dtype, n, heads, d)


@lru_cache(maxsize=256)
def _tried(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> bool:
    reason = _fault(device, dtype, n, heads, d)
    if reason:
        warn_once(device, "window attention", reason)
    return not reason


def _fault(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> str:
    """Why the kernel cannot be used; "" if it can."""
    case = f"n={n}, heads={heads}, d={d}"
    return fault(device, dtype, lambda: attention_errors(device, dtype, n, heads, d), case)


def attention_errors(
    device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int
) -> dict[str, float]:
    """The kernel's errors against the formula in fp64 on one small input, with and without a mask,
    as fractions.
    """
    from nnssl.encoder.attention import launch

    errors: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)  # of its own: a run's must not move

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    with as_in_training(device):
        for mask in (None, _mask(n, device, generator)):
            qkv = drawn(6, n, 3, heads, d).to(dtype).requires_grad_()
            bias = drawn(heads, n, n).requires_grad_()
            gradient = drawn(6, n, heads * d).to(dtype)
            exact, exact_bias = (t.detach().double().requires_grad_() for t in (qkv, bias))
            got = _all(launch.attention, qkv, bias, mask, gradient)
            wanted = _all(reference.attention, exact, exact_bias, mask, gradient.double())
            keep_largest(errors, ("output", "gradient", "bias gradient"), got, wanted)
            sums = _offset_gradient(qkv, bias, mask, gradient)
            exact_sums = wanted[1].sum((0, 1)).flatten(1)
            keep_largest(errors, ("offset gradient",), [sums], [exact_sums])
    return errors


def _offset_gradient(qkv: Tensor, bias: Tensor, mask: Mask | None, gradient: Tensor) -> Tensor:
    """[3 heads*d]: by the variant of the kernel that sums; compiled here, not in the first step."""
    from nnssl.encoder.attention import launch

    parts = qkv.new_zeros(4, 3, gradient.shape[-1], dtype=torch.float32, requires_grad=True)
    out = launch.attention(qkv, bias, mask, parts)
    return torch.autograd.grad(out, (qkv, bias, parts), gradient)[2].sum(0)


def _mask(n: int, device: torch.device, generator: torch.Generator) -> Mask:
    """Two patterns of two regions each, over three windows per sample."""
    regions = torch.randint(2, (2, n), generator=generator)
    return moved(Mask.of(regions, torch.tensor([1, 0, 1]), -torch.inf), device)


def _all(
    function: Callable[[Tensor, Tensor, Mask | None], Tensor],
    qkv: Tensor,
    bias: Tensor,
    mask: Mask | None,
    gradient: Tensor,
) -> list[Tensor]:
    out = function(qkv, bias, mask)
    return [out.detach(), *torch.autograd.grad(out, (qkv, bias), gradient)]
