"""Whether the Triton kernel serves: it is tried on a small input of the shape that is asked for,
once.

The kernel was proven without a GPU. So the first time a process needs it for a shape, it is
compared with the formula in fp64 on the GPU at hand; where it differs or cannot run, PyTorch's own
attention is taken and one line says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from nnssl import dist
from nnssl.encoder.attention import plain
from nnssl.encoder.windows import Mask

MOST_SLOTS, MOST_CHANNELS = 64, 128  # of a window, and of a head
# The largest error, as a fraction of the length of what is right. Seen in Triton's interpreter:
# 1e-6, 4e-3, 5e-4.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_said: set[torch.device] = set()


@torch.compiler.assume_constant_result
def kernel_serves(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> bool:
    """For windows of n slots and heads of d channels; False, after a warning, where it should and
    does not.
    """
    if device.type != "cuda" or dtype not in TOLERANCES or n > MOST_SLOTS or d > MOST_CHANNELS:
        return False
    return _tried(device, dtype, n, heads, d)


@lru_cache(maxsize=256)
def _tried(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> bool:
    reason = _fault(device, dtype, n, heads, d)
    if reason and device not in _said and dist.is_main():
        _said.add(device)
        warnings.warn(
            f"window attention on {device} goes without the Triton kernel, which is slower: "
            f"{reason}",
            stacklevel=2,
        )
    return not reason


def _fault(device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int) -> str:
    """Why the kernel does not serve; nothing where it does."""
    case = f"n={n}, heads={heads}, d={d}"
    return fault(device, dtype, lambda: compare(device, dtype, n, heads, d), case)


def fault(
    device: torch.device, dtype: torch.dtype, compare: Callable[[], dict[str, float]], case: str
) -> str:
    """Why a kernel does not serve for a `case`, by its errors in a comparison; nothing where it
    does.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (A100, RTX 30) or later"
    try:
        errors = compare()
    except Exception as error:  # whatever a compiler or driver may say
        return f"it cannot run ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    name, worst = max(
        errors.items(), key=lambda item: float("inf") if item[1] != item[1] else item[1]
    )
    if not worst <= TOLERANCES[dtype]:
        return f"its {name} is wrong by {worst:.1e} for {dtype}, {case}; please report this"
    return ""


def compare(
    device: torch.device, dtype: torch.dtype, n: int, heads: int, d: int
) -> dict[str, float]:
    """The kernel's errors beside the formula in fp64 on one small input, with and without a mask,
    as shares.
    """
    from nnssl.encoder.attention import launch

    errors: dict[str, float] = {}
    chance = torch.Generator().manual_seed(0)  # of its own: a run's must not move
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        for mask in (None, _mask(n, device, chance)):
            qkv = (
                torch.randn(6, n, 3, heads, d, generator=chance).to(device, dtype).requires_grad_()
            )
            bias = torch.randn(heads, n, n, generator=chance).to(device).requires_grad_()
            gradient = torch.randn(6, n, heads * d, generator=chance).to(device, dtype)
            got = _all(launch.attention, qkv, bias, mask, gradient)
            exact, exact_bias = (t.detach().double().requires_grad_() for t in (qkv, bias))
            wanted = _all(plain.attention, exact, exact_bias, mask, gradient.double())
            for name, a, b in zip(
                ("output", "gradient", "bias gradient"), got, wanted, strict=True
            ):
                # 0 in windows of one token
                error = float((a.double() - b).norm() / b.norm().clamp(min=1e-6))
                errors[name] = error if error != error else max(errors.get(name, 0.0), error)
    return errors


def _mask(n: int, device: torch.device, chance: torch.Generator) -> Mask:
    """Two patterns of two regions each, over three windows a sample."""
    regions = torch.randint(2, (2, n), generator=chance)
    mask = Mask.of(regions, torch.tensor([1, 0, 1]), -torch.inf)
    parts = vars(mask).items()
    moved: dict = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in parts}
    return Mask(**moved)


def _all(
    function: Callable[[Tensor, Tensor, Mask | None], Tensor],
    qkv: Tensor,
    bias: Tensor,
    mask: Mask | None,
    gradient: Tensor,
) -> list[Tensor]:
    out = function(qkv, bias, mask)
    return [out.detach(), *torch.autograd.grad(out, (qkv, bias), gradient)]
