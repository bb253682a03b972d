"""What is no volume, or no CT in HU, and why: the rules by which scans are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnssl.types import BODY_HU

SPACING_BOUNDS = (0.05, 15.0)  # mm; below is microscopy, above are localizers and missing headers
SMALLEST_AXIS = 8  # voxels
AIR_HU = -200.0  # every CT holds something below: air around the body, lung, gas in the bowel
TISSUE_HU = (-300.0, 400.0)  # where the median of the body lies; in 241 real scans -73 to 62
LARGEST_HU = 65536.0  # metal and padding stay below


class RefusedError(ValueError):
    """A scan that is left out; the message is the reason in the report."""


def check_name(path: Path | str) -> str:
    """`path`, unless its bytes are not UTF-8: SimpleITK would abort the whole process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RefusedError("cannot be read: its name or folder is not valid UTF-8; rename it") from error
    return str(path)


def check_grid(size: Sequence[int], spacing: Sequence[float], components: int) -> None:
    """`size` in voxels and `spacing` in mm, both as SimpleITK gives them (x, y, z)."""
    if components != 1:
        raise RefusedError(f"has {components} components a voxel, a CT has one")
    if len(size) != 3:
        raise RefusedError(f"is not three-dimensional: size {tuple(size)}")
    if min(size) < SMALLEST_AXIS:
        raise RefusedError(f"is too small: size {tuple(size)}, at least {SMALLEST_AXIS} voxels an axis are needed")
    low, high = SPACING_BOUNDS
    if not all(low <= abs(s) <= high for s in spacing):
        raise RefusedError(f"has an absurd spacing: {tuple(spacing)} mm (x, y, z), allowed is {low} to {high} mm")


def check_values(voxels: np.ndarray) -> None:
    """Raise RefusedError unless the voxels [Z Y X] are finite and differ."""
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():
        raise RefusedError("holds NaN or infinite voxels")
    if low == high:
        raise RefusedError(f"is constant: every voxel is {low:g}")


def check_hu(hu: np.ndarray) -> None:
    """Raise RefusedError unless the voxels [Z Y X] look like a CT in HU (documentation/data.md gives the reasons)."""
    check_values(hu)
    low, high = float(hu.min()), float(hu.max())
    if low >= AIR_HU:
        raise RefusedError(
            f"is not in HU: no voxel below {AIR_HU:g} (values {low:g} to {high:g}), but CT holds air; "
            "for images that are not CT: --no-hu"
        )
    if max(-low, high) > LARGEST_HU:
        raise RefusedError(f"is not in HU: values {low:g} to {high:g}")
    body = hu[hu > BODY_HU]
    if body.size < 0.001 * hu.size:
        raise RefusedError(f"holds nothing but air: {body.size} of {hu.size} voxels above {BODY_HU:g} HU")
    middle = float(np.median(body))
    if not TISSUE_HU[0] <= middle <= TISSUE_HU[1]:
        raise RefusedError(
            f"is not in HU: the median of the voxels above {BODY_HU:g} is {middle:g}, "
            f"tissue lies in {TISSUE_HU[0]:g} to {TISSUE_HU[1]:g}"
        )


def short(error: Exception) -> str:
    """The telling line of an ITK error: the last, but for what the operating system happened to say before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Reason:")]
    return re.sub(r"\(0x[0-9a-f]+\)", "", (telling or lines or [type(error).__name__])[-1])[:300]
