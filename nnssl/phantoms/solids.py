"""Solids that a phantom is made of: each says of every voxel whether it lies inside.

Coordinates are (z, y, x) in mm from the middle of the trunk: z to the head, y to the back, x to
the patient's left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from nnssl.types import Spacing

Grid = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in mm, each [Z Y X]
Inside = Callable[[Grid], np.ndarray]  # Bool, True inside the part


def ellipsoid(centre: Spacing, radii: Spacing) -> Inside:
    def inside(grid: Grid) -> np.ndarray:
        parts = (((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True))
        return reduce(np.add, parts) < 1

    return inside


def column(centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Inside:
    """An endless column along z; `power` above 2 makes the section more like a rectangle."""

    def inside(grid: Grid) -> np.ndarray:
        _, y, x = grid
        return (
            np.abs((y - centre[0]) / radii[0]) ** power
            + np.abs((x - centre[1]) / radii[1]) ** power
            < 1
        )

    return inside


def both(*shapes: Inside) -> Inside:
    return lambda grid: np.logical_and.reduce([shape(grid) for shape in shapes])


def without(shape: Inside, hole: Inside) -> Inside:
    return lambda grid: shape(grid) & ~hole(grid)


def between(low: float, high: float) -> Inside:
    """Slices with low < z < high, in mm."""
    return lambda grid: (grid[0] > low) & (grid[0] < high)


def stripes(period: float, fraction: float, phase: float, tilt: float = 0.0) -> Inside:
    """Layers along z, each `fraction` of a `period` thick (mm); `tilt`: mm of z per mm to the front
    (ribs).
    """
    return lambda grid: np.mod(grid[0] - tilt * grid[1] + phase, period) < fraction * period
