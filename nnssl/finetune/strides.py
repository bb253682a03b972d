"""Which axes each step of the encoder halves, so that its tokens stay about as isotropic as in the
pretraining.
"""

from __future__ import annotations

from collections.abc import Iterable

from nnssl.encoder.config import PATCH, STEPS
from nnssl.shapes import ceil_div
from nnssl.types import Shape, Spacing

# an axis waits while its tokens are this many times as wide as the narrowest that can be halved:
# nnU-Net's own rule
WIDER = 2


def steps_for(
    spacing: Spacing, size: Shape, pretrained: Spacing | None = None
) -> tuple[Shape, ...]:
    """`SwinConfig.steps` for images of `size` voxels of `spacing` mm, by axis.

    pretrained: the spacing of the pretraining, in the same order. There every axis was halved, so
                what counts is how much wider an axis is here than there; None counts as isotropic.
    An axis of a single token is not halved either, nor waited for: its other half would be padding.
    """
    pairs = zip(spacing, pretrained or [1.0] * len(spacing), strict=True)
    width = [here / there for here, there in pairs]
    tokens, steps = size, []
    for _ in range(STEPS):
        step = _next_step(width, tokens)
        width = [w * s for w, s in zip(width, step, strict=True)]
        tokens = ceil_div(tokens, step)
        steps.append(step)
    return tuple(steps)


def _next_step(width: list[float], tokens: Shape) -> Shape:
    """The next step, by axis: from the tokens' relative width, and their number."""
    divisible = [n > 1 for n in tokens]
    narrowest = min((w for w, can in zip(width, divisible, strict=True) if can), default=0.0)
    halved = [can and w < WIDER * narrowest for w, can in zip(width, divisible, strict=True)]
    return tuple(PATCH if half else 1 for half in halved)


def steps_in_words(steps: Iterable[Iterable[int]]) -> str:
    """1x2x2 2x2x2 ...; empty where the steps are 2 everywhere."""
    return " ".join("x".join(map(str, step)) for step in steps)
