"""Whether a device computes what the CPU computes: maps, gradients, and the attention kernel."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import torch

from nnssl.bench.sizes import Sizes
from nnssl.encoder.attention import choice
from nnssl.encoder.swin import Swin
from nnssl.train.precision import Precision

LIMITS = {"fp32": 1e-3, "bf16": 3e-2}  # errors beside the CPU's fp32, as fractions


def correctness(sizes: Sizes, device: torch.device) -> dict:
    """Errors of maps and gradients beside the CPU's in fp32, as fractions of their length; and the
    attention's way.
    """
    torch.manual_seed(0)
    encoder = Swin(replace(sizes.encoder, drop_path=0.0), maskable=True)
    image, masked = torch.randn(2, 1, 32, 32, 48), torch.rand(2, 16, 16, 24) < 0.5

    def look(where: torch.device, bf16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        encoder.to(where).zero_grad()
        precision = Precision(encoder, where, torch.bfloat16 if bf16 else None)
        with precision.weights():
            with precision.autocast():
                maps = encoder(image.to(where), masked.to(where))
            terms = (
                (m.float() * torch.linspace(-1, 1, m.numel(), device=where).view_as(m)).mean()
                for m in maps
            )
            reduce(add, terms).backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        of_maps, of_gradients = (
            torch.cat([t.detach().float().cpu().flatten() for t in part])
            for part in (maps, gradients)
        )
        return of_maps, of_gradients

    found: dict = {}
    exact = look(torch.device("cpu"), False)
    for name, bf16 in (("fp32", False), ("bf16", True)):
        for what, a, b in zip(("maps", "gradients"), exact, look(device, bf16), strict=True):
            found[f"{what}_{name}"] = float((a - b).norm() / a.norm())
            found[f"{what}_{name}_right"] = found[f"{what}_{name}"] < LIMITS[name]
    return {**found, **(kernel(encoder, device) if device.type == "cuda" else {})}


def kernel(encoder: Swin, device: torch.device) -> dict:
    """For the shapes of attention in full windows: the Triton kernel's largest error, or why it
    does not serve.
    """
    found: dict = {}
    config = encoder.config
    if config.window**3 > choice.MOST_SLOTS:
        return found
    for heads, d in sorted(
        {(h, c // h) for h, c in zip(config.heads, encoder.channels, strict=False)}
    ):
        for dtype in (torch.bfloat16, torch.float32):
            key = f"attention_{str(dtype)[6:]}_{heads}x{d}"
            try:
                errors = choice.compare(device, dtype, config.window**3, heads, d)
                found[key] = max(errors.values())
            except Exception as error:
                found[key] = f"{type(error).__name__}: {error}"[:300]
    return found
