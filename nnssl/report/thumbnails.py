"""Small pictures of a scan: its three middle planes as a reader of CT is used to them, and its
histogram.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnssl.types import Shape, Spacing

BOX = 112  # pixels: edge of one plane, and of the histogram
GROUND, BAR = 24, 200  # grey of the histogram's ground and of its bars


@dataclass(frozen=True)
class Planes:
    """The middle planes of a scan: axial [Y X], coronal [Z X], sagittal [Z Y]; spacing (z, y, x)
    in mm.
    """

    axial: np.ndarray
    coronal: np.ndarray
    sagittal: np.ndarray
    spacing: Spacing

    @classmethod
    def of(cls, read: Callable[[tuple], np.ndarray], shape: Shape, spacing: Spacing) -> Planes:
        """`read` takes an index (z, y, x) of whole numbers and slices: one plane at a time is
        loaded.
        """
        z, y, x = (size // 2 for size in shape)
        whole = slice(None)
        return cls(
            read((z, whole, whole)),
            read((whole, y, whole)),
            read((whole, whole, x)),
            spacing,
        )

    @property
    def voxels(self) -> np.ndarray:
        return np.concatenate([np.ravel(p) for p in (self.axial, self.coronal, self.sagittal)])

    def limits(self) -> tuple[float, float]:
        """Black and white where no HU say it: the first and the last hundredth are cut off."""
        low, high = np.percentile(self.voxels, (1, 99))
        return float(low), float(high)


def picture(
    planes: Planes, counts: np.ndarray, orientation: str, limits: tuple[float, float]
) -> bytes:
    """PNG of the planes and of a histogram with these `counts`, side by side.

    The patient looks to the top of the axial plane and the head is up in the others, where the
    orientation (as `nnssl.data.orientation` names it) is known.
    """
    z, y, x = planes.spacing
    up, back, left = _reversed(orientation)
    shown = (
        (planes.axial, (y, x), (back, left)),
        (planes.coronal, (z, x), (up, left)),
        (planes.sagittal, (z, y), (up, back)),
    )
    boxes = [_boxed(_flipped(_grey(plane, limits), by), mm) for plane, mm, by in shown]
    return _png(np.hstack([*boxes, bars(counts)]))


def _flipped(plane: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    return np.flip(plane, tuple(axis for axis, flipped in enumerate(flips) if flipped))


def bars(counts: np.ndarray) -> np.ndarray:
    """uint8 [BOX BOX]: a histogram as bars from the bottom, the highest as high as the box."""
    columns = _column_means(counts)
    heights = np.rint((BOX - 8) * columns / max(columns.max(), 1e-12)).astype(int)
    rows = np.arange(BOX)[::-1, None]
    return np.where(rows < heights, BAR, GROUND).astype(np.uint8)


def _column_means(counts: np.ndarray) -> np.ndarray:
    """[BOX]: the mean of a column's bins, as some columns have more of them than others."""
    edges = np.linspace(0, len(counts), BOX, endpoint=False).astype(int)
    widths = np.diff([*edges, len(counts)]).clip(1)
    return np.add.reduceat(np.asarray(counts, float), edges) / widths


def _reversed(orientation: str) -> tuple[bool, bool, bool]:
    """Which of z, y and x a picture turns round. Permuted axes were brought to LPS in reading."""
    straight = re.fullmatch("[LR][PA][SI]", orientation)
    x, y, z = orientation if straight else "LPS"
    return z == "S", y == "A", x == "R"


def _grey(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return (255 * ((plane - low) / max(high - low, 1e-6)).clip(0, 1)).astype(np.uint8)


def _boxed(plane: np.ndarray, spacing: Spacing) -> np.ndarray:
    """uint8 [BOX BOX]: the plane as large as fits, in its true proportions, in the middle."""
    extent = np.multiply(plane.shape, spacing)
    rows, columns = np.rint(BOX * extent / extent.max()).astype(int).clip(1)
    box = np.zeros((BOX, BOX), np.uint8)
    top, left = (BOX - rows) // 2, (BOX - columns) // 2
    box[top : top + rows, left : left + columns] = _scaled(plane, int(rows), int(columns))
    return box


def _scaled(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    from PIL import Image  # matplotlib brings it along

    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))


def _png(grey: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey).save(out, format="png", optimize=True)
    return out.getvalue()
