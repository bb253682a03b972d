"""Arithmetic of sizes, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence

from nnssl.types import Shape


def ceil_div(size: Sequence[int], step: Sequence[int]) -> Shape:
    """`size` over `step`, rounded up."""
    return tuple(-(-n // s) for n, s in zip(size, step, strict=True))


def floor_div(size: Sequence[int], step: Sequence[int]) -> Shape:
    """`size` over `step`, rounded down."""
    return tuple(n // s for n, s in zip(size, step, strict=True))


def round_up(size: Sequence[int], step: Sequence[int]) -> Shape:
    """The next multiples of `step`."""
    return tuple(-(-n // s) * s for n, s in zip(size, step, strict=True))
