"""Whether a device computes what the CPU computes: maps, gradients, and the attention kernel."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import product
from operator import add

import torch
from torch import Tensor

from nnssl.bench.sizes import BenchSizes
from nnssl.encoder.attention import choice
from nnssl.encoder.swin import Swin
from nnssl.train.precision import Precision

LIMITS = {"fp32": 1e-3, "bf16": 3e-2}  # errors against the CPU's fp32, as fractions


def correctness(sizes: BenchSizes, device: torch.device) -> dict:
    """Errors of maps and gradients against the CPU's in fp32, as fractions of their length; and
    those of the attention kernel.
    """
    torch.manual_seed(0)
    encoder = Swin(replace(sizes.encoder, drop_path=0.0), maskable=True)
    image, masked = torch.randn(2, 1, 32, 32, 48), torch.rand(2, 16, 16, 24) < 0.5
    exact = _outputs(encoder, image, masked, torch.device("cpu"))
    found: dict = {}
    for name, half in (("fp32", None), ("bf16", torch.bfloat16)):
        found |= _errors(exact, _outputs(encoder, image, masked, device, half), name)
    if device.type == "cuda":
        found |= kernel(encoder, device)
    return found


def _errors(exact: dict[str, Tensor], outputs: dict[str, Tensor], precision: str) -> dict:
    """The error of each part, and whether it is within LIMITS."""
    found: dict = {}
    for part, right in exact.items():
        error = float((right - outputs[part]).norm() / right.norm())
        found[f"{part}_{precision}"] = error
        found[f"{part}_{precision}_right"] = error < LIMITS[precision]
    return found


def _outputs(
    encoder: Swin,
    image: Tensor,
    masked: Tensor,
    device: torch.device,
    half: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Maps, and gradients of a weighted mean of them, each flat, in fp32 on the CPU."""
    encoder.to(device).zero_grad()
    precision = Precision(encoder, device, half)
    with precision.weights():
        with precision.autocast():
            maps = encoder(image.to(device), masked.to(device))
        reduce(add, map(_weighted_mean, maps)).backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    return {"maps": _flat(maps), "gradients": _flat(gradients)}


def _weighted_mean(x: Tensor) -> Tensor:
    """Every value with another weight, so that all of them have a part in the gradient."""
    weights = torch.linspace(-1, 1, x.numel(), device=x.device)
    return (x.float() * weights.view_as(x)).mean()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in tensors])


def kernel(encoder: Swin, device: torch.device) -> dict:
    """For the shapes of attention in full windows: the Triton kernel's largest error, or why it
    does not serve.
    """
    slots = encoder.config.window**3
    if slots > choice.MOST_SLOTS:
        return {}
    found: dict = {}
    for (heads, d), dtype in product(_heads_and_widths(encoder), (torch.bfloat16, torch.float32)):
        key = f"attention_{str(dtype)[6:]}_{heads}x{d}"
        try:
            found[key] = max(choice.attention_errors(device, dtype, slots, heads, d).values())
        except Exception as error:
            found[key] = f"{type(error).__name__}: {error}"[:300]
    return found


def _heads_and_widths(encoder: Swin) -> list[tuple[int, int]]:
    """How many there are in a stage, and their width; each pair once."""
    # the fifth width is that of the last map, which has no attention
    widths = zip(encoder.config.heads, encoder.channels, strict=False)
    return sorted({(heads, channels // heads) for heads, channels in widths})
