"""Test a Triton kernel on the current GPU, once, against the formula in fp64.

The tests prove the kernels without a GPU, in Triton's interpreter. Where one differs from its
formula or cannot run, PyTorch's own operations are taken and one line says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nnssl import dist

# The largest error, as a fraction of the length of what is right. Seen in Triton's interpreter:
# 1e-6, 4e-3, 5e-4.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_warned: set[tuple[torch.device, str]] = set()


def warn_once(device: torch.device, operations: str, reason: str) -> None:
    """Warn of the first fault of a kind of `operations` on a device; by every process, since one
    that is slower sets the pace of all.
    """
    if (device, operations) in _warned:
        return
    _warned.add((device, operations))
    warnings.warn(
        f"{operations} on {device}{_rank()} runs without the Triton kernel, which is slower: "
        f"{reason}",
        stacklevel=3,
    )


def _rank() -> str:
    return f" of rank {dist.rank()}" if dist.is_initialized() else ""


def fault(
    device: torch.device, dtype: torch.dtype, compare: Callable[[], dict[str, float]], case: str
) -> str:
    """Why a kernel cannot be used for a `case`, by its errors in a comparison; "" if it can."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (A100, RTX 30) or later"
    try:
        errors = compare()
    except Exception as error:  # whatever a compiler or driver may say
        first_line = str(error).partition("\n")[0]
        return f"it cannot run ({type(error).__name__}: {first_line})"
    worst = _worst(errors)
    if errors[worst] <= TOLERANCES[dtype]:
        return ""
    return f"its {worst} is off by {errors[worst]:.1e} for {dtype}, {case}; please report this"


def _worst(errors: dict[str, float]) -> str:
    """NaN counts as the largest."""
    return max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])


@contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Gradients are on and autocast is off, whatever holds outside."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def keep_largest(
    errors: dict[str, float], names: Iterable[str], ours: Iterable[Tensor], exact: Iterable[Tensor]
) -> None:
    """The largest error of each name so far, as a fraction of the exact length; or NaN."""
    for name, a, b in zip(names, ours, exact, strict=True):
        error = _relative_error(a, b)
        errors[name] = error if math.isnan(error) else max(errors.get(name, 0.0), error)


def _relative_error(ours: Tensor, exact: Tensor) -> float:
    # 0 in windows of one token
    return float((ours.double() - exact).norm() / exact.norm().clamp(min=1e-6))
