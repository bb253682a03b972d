"""Memory of a training step: a sum over the maps of the network, fitted to measurements.

What a step holds at its peak, at the turn from the forward to the backward pass, is a few copies of
each map that the backward pass needs. How large the maps are follows from the architecture; how
many copies of each kind, in which precision, was fitted (`python -m nnssl.bench.memory --fit`). The
table of measurements is in documentation/planner.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod

import torch

from nnssl.encoder.config import STEPS, SwinConfig
from nnssl.encoder.windows import window_and_shift
from nnssl.network.decoders import DECODERS, OUTPUTS, full_options
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.shapes import ceil_div, round_up
from nnssl.types import Shape

TOLERANCE = 0.15  # of the estimate, over the measured grid

# Bytes per number of each of `terms`, by decoder.
COEFFICIENTS: dict[str, dict[str, float]] = {
    "swinunetr": {
        "parameters": 18.03,
        "tokens": 30.12,
        "slots": 17.21,
        "scores": 3.93,
        "maps": 0.0,
        "convolutions": 18.41,
        "image": 21.46,
        "finest": 37.08,
        "coarser": 30.95,
        "logits": 15.06,
    },
    "light": {
        "parameters": 17.43,
        "tokens": 36.6,
        "slots": 11.58,
        "scores": 4.45,
        "maps": 14.02,
        "convolutions": 19.91,
        "image": 25.87,
        "finest": 10.4,
        "coarser": 0.0,
        "logits": 16.95,
    },
    "nnunet": {
        "parameters": 18.02,
        "tokens": 31.43,
        "slots": 16.83,
        "scores": 3.88,
        "maps": 18.05,
        "convolutions": 19.79,
        "image": 28.41,
        "finest": 24.8,
        "coarser": 0.0,
        "logits": 15.1,
    },
}


def peak_bytes(config: SwinConfig, decoder: str, patch: Shape, batch: int, classes: int) -> float:
    """Bytes at the peak of a training step under fp16 autocast, with AdamW and deep supervision.

    config:  of the encoder, with the image's channels and, by axis, its steps in the order of
             `patch`.
    classes: channels of the logits.
    """
    coefficients = COEFFICIENTS[decoder]
    numbers = terms(config, decoder, patch, batch, classes)
    return sum(coefficients[name] * number for name, number in numbers.items())


def terms(
    config: SwinConfig, decoder: str, patch: Shape, batch: int, classes: int
) -> dict[str, float]:
    """What the memory is proportional to: numbers in the maps of each kind, and parameters."""
    grids = _grids(config, patch)
    voxels = [prod(grid) for grid in grids]
    per_sample = {
        **_encoder_terms(config, grids),
        "image": voxels[0] * config.in_channels,
        **_decoder_terms(decoder_widths(config, decoder), voxels),
        "logits": classes * sum(voxels[:OUTPUTS]),
    }
    found: dict[str, float] = {"parameters": parameters(config, decoder)}
    return found | {name: batch * value for name, value in per_sample.items()}


def _decoder_terms(widths: tuple[int, ...], voxels: list[int]) -> dict[str, float]:
    numbers = [v * w for v, w in zip(voxels, widths, strict=False)]
    return {"finest": numbers[0], "coarser": sum(numbers[1:])}


def _grids(config: SwinConfig, patch: Shape) -> list[Shape]:
    """The patch in voxels, and the grid of tokens behind each step of the encoder."""
    grids = [tuple(patch)]
    for number in range(STEPS):
        grids.append(ceil_div(grids[-1], config.step(number)))
    return grids


def _encoder_terms(config: SwinConfig, grids: list[Shape]) -> dict[str, float]:
    tokens, slots, scores, maps = 0.0, 0.0, 0.0, 0.0
    stages = zip(config.depths, config.heads, grids[1:-1], strict=True)
    for stage, (depth, heads, grid) in enumerate(stages):
        width = config.embed_dim * 2**stage
        window, _ = window_and_shift(grid, config.window, config.windows)
        filled = prod(round_up(grid, window))
        tokens += depth * prod(grid) * width
        slots += depth * filled * width
        scores += depth * filled * prod(window) * heads
        maps += prod(grid) * width
    return {
        "tokens": tokens,
        "slots": slots,
        "scores": scores,
        "maps": maps,
        "convolutions": maps * config.convolutions,
    }


def decoder_widths(config: SwinConfig, decoder: str) -> tuple[int, ...]:
    """Channels of the decoder's maps at strides 1 to 16."""
    channels = tuple(config.embed_dim * 2**number for number in range(STEPS))
    return DECODERS[decoder].default_widths(channels)[:STEPS]


@lru_cache(maxsize=256)
def parameters(config: SwinConfig, decoder: str) -> int:
    """How many the network has, built without memory; steps by axis and channels hardly matter."""
    with torch.device("meta"):
        encoder = replace(config, steps=()).to_dict()
        network = SwinUNETR(1, 2, True, encoder=encoder, decoder=full_options(decoder))
    return sum(p.numel() for p in network.parameters())
