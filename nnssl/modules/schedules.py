"""Numbers that change with progress, which runs from 0 (first step) to 1 (last)."""

from __future__ import annotations

import math


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine: end - (end - start) (1 + cos(pi p)) / 2 (Grill
    2020, BYOL).
    """
    return end - (end - start) * (1 + math.cos(math.pi * _clipped(progress))) / 2


def ramp(start: float, end: float, progress: float, begin: float, length: float) -> float:
    """`start` until `begin`, then linear to `end`, reached `length` of the progress later, and
    kept.
    """
    if length <= 0:
        return end if progress >= begin else start
    return start + (end - start) * _clipped((progress - begin) / length)


def _clipped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)
