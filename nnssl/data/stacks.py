"""The geometry of a stack of slices: their order, whether they make a straight and even grid, and a
resampled one if they do not.

Everything is measured on ImagePositionPatient and ImageOrientationPatient. What other tags say
(GantryDetectorTilt, SliceThickness, InstanceNumber) is often wrong after anonymisation and is
ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nnssl.data.refusals import SMALLEST_AXIS, UnusableScanError

# degrees between the stack's direction and the slices' normal: 5 mm over a stack of 300 mm
TILT = 1.0
MOST_TILT = 35.0  # degrees: gantries tilt by 30
# degrees from the table's axis; a scanner moves the table, so other stacks are reformats
OBLIQUE = 10.0
TABLE = np.array([0.0, 0.0, 1.0])  # the direction in which the table moves, in the patient's frame
UNEVEN = 0.1  # of the slice spacing, and in mm at least: positions are often rounded to 0.1 mm
WIDEST_GAP = 10.0  # mm between slices that may be interpolated
MOST_UNEVEN = 4.0  # times the smallest gap
SAME_PLACE = 0.01  # mm
STILL = 0.05  # pixels: smaller shifts are rounding


@dataclass(frozen=True)
class Arranged:
    """`order` of the slices, their `spacing` in mm, and what `straighten` must fix, if anything."""

    order: np.ndarray
    spacing: float
    note: str = ""


def normal_of(orientation: np.ndarray) -> np.ndarray:
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / max(np.linalg.norm(normal), 1e-9)


def arrange(positions: np.ndarray, orientation: np.ndarray, table: bool = True) -> Arranged:
    """Order of the slices along their normal, and their spacing.

    `positions` [N 3] in mm and `orientation` [6] in the patient's frame, as DICOM gives them.
    `table`: the slices are of a CT, which moves the table, so that others than axial ones were
    computed. Raises UnusableScanError for such reformats, for too few slices, and for gaps or
    shifts that are no grid.
    """
    normal = normal_of(orientation)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    path = positions[order[-1]] - positions[order[0]]
    tilt = _tilt(path, normal)
    if table:
        _check_axial(normal, path, tilt)
    _check_number(len(positions))
    gaps = np.diff(along[order])
    even = _check_gaps(gaps)
    _check_tilt(tilt)
    _check_line(positions[order], path)
    spacing = float(gaps.mean() if even else np.median(gaps))
    return Arranged(order, spacing, "; ".join(_notes(tilt, None if even else gaps, spacing)))


def _check_number(slices: int) -> None:
    if slices < SMALLEST_AXIS:
        raise UnusableScanError(
            f"has too few slices: {slices}, at least {SMALLEST_AXIS} are needed"
        )


def _check_tilt(tilt: float) -> None:
    if tilt > MOST_TILT:
        raise UnusableScanError(
            f"is skewed: its slices are shifted by {tilt:.0f} degrees against their normal"
        )


def _tilt(path: np.ndarray, axis: np.ndarray) -> float:
    """Degrees between the way from the first slice to the last and an axis, such as their
    normal.
    """
    length = float(np.linalg.norm(path))
    return _degrees(float(abs(path @ axis)) / length) if length > 0 else 0.0


def _notes(tilt: float, uneven: np.ndarray | None, spacing: float) -> Iterator[str]:
    """What `straighten` does; uneven: the gaps, where they are not even."""
    if tilt > TILT:
        yield f"tilted gantry ({tilt:.1f} degrees): slices shifted onto a straight grid"
    if uneven is not None:
        yield (
            f"unevenly spaced ({uneven.min():.3g} to {uneven.max():.3g} mm): resampled to "
            f"{spacing:.3g} mm"
        )


def _check_axial(normal: np.ndarray, path: np.ndarray, tilt: float) -> None:
    """Refuse reformats: slices that are not axial, unless the gantry was tilted and the table moved
    along its axis.
    """
    off_axis = _degrees(abs(normal[2]))
    is_gantry = tilt > TILT and _tilt(path, TABLE) <= OBLIQUE
    if off_axis > 45 or (off_axis > OBLIQUE and not is_gantry):
        raise UnusableScanError(
            f"is a reformat, not the primary stack: its slices are turned by {off_axis:.0f} "
            "degrees from axial"
        )


def _check_gaps(gaps: np.ndarray) -> bool:
    """Whether they are even. UnusableScanError when a grid cannot be made of them."""
    if gaps.min() < SAME_PLACE:
        raise UnusableScanError(
            f"has several slices at the same position ({int((gaps < SAME_PLACE).sum())} of them)"
        )
    if _even(gaps):
        return True
    _check_fillable(gaps)
    if _alternate(gaps):
        raise UnusableScanError(
            f"contains two interleaved stacks: its slices are {gaps[0]:.3g} and {gaps[1]:.3g} mm "
            "apart alternately; separate them"
        )
    return False


def _check_fillable(gaps: np.ndarray) -> None:
    smallest, largest = gaps.min(), gaps.max()
    # either may be rounded
    if largest > min(WIDEST_GAP + UNEVEN, MOST_UNEVEN * (smallest + UNEVEN)):
        raise UnusableScanError(
            f"is unevenly spaced: {smallest:.3g} to {largest:.3g} mm between slices; gaps up "
            f"to {WIDEST_GAP:g} mm and {MOST_UNEVEN:g} times the smallest are filled"
        )


def _alternate(gaps: np.ndarray) -> bool:
    """Whether the gaps are of two sizes in turn."""
    return len(gaps) >= 2 * SMALLEST_AXIS and _even(gaps[::2]) and _even(gaps[1::2])


def _even(gaps: np.ndarray) -> bool:
    mean = float(gaps.mean())
    return bool(np.abs(gaps - mean).max() <= max(UNEVEN, UNEVEN * mean))


def _check_line(positions: np.ndarray, path: np.ndarray) -> None:
    """Slices beside the line from the first to the last: the field of view moved."""
    aside = _farthest_aside(positions, path / np.linalg.norm(path))
    if aside > 1.0:
        raise UnusableScanError(
            f"is unevenly placed: slices lie up to {aside:.1f} mm beside the stack's axis"
        )


def _farthest_aside(positions: np.ndarray, direction: np.ndarray) -> float:
    """The largest distance from the line through the first of `positions`."""
    off = positions - positions[0]
    across = off - (off @ direction)[:, None] * direction
    return float(np.linalg.norm(across, axis=1).max())


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def straighten(
    voxels: np.ndarray,
    positions: np.ndarray,
    orientation: np.ndarray,
    pixel: tuple[float, float],
    spacing: float,
    fill: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The slices on a grid at right angles whose slices stay parallel to the given ones; and where
    its corner lies.

    voxels: float32 [N Y X] in order; positions: [N 3] in mm, of each slice's first pixel; pixel:
    (x, y) and spacing in mm. Shifted within the planes and then between them, linearly; `fill` is
    what was not scanned.
    """
    off = positions - positions[0]
    corner = positions[0].astype(float).copy()
    in_plane = ((2, orientation[:3], pixel[0]), (1, orientation[3:], pixel[1]))
    for axis, direction, size in in_plane:
        shifts = off @ direction / size
        if np.abs(shifts).max() > STILL:
            voxels = _shifted(voxels, shifts, axis, fill)
            corner += np.floor(shifts.min()) * size * direction
    along = off @ normal_of(orientation)
    if not _even(np.diff(along)):
        voxels = _between(voxels, along, np.arange(0, along[-1] + 1e-3 * spacing, spacing))
    return voxels, corner


def _shifted(voxels: np.ndarray, shifts: np.ndarray, axis: int, fill: float) -> np.ndarray:
    """Each slice moved by its own number of pixels along `axis` (1: y, 2: x); the axis grows so
    that all fit.
    """
    low, high = int(np.floor(shifts.min())), int(np.ceil(shifts.max()))
    shape = list(voxels.shape)
    shape[axis] += high - low
    out = np.full(shape, fill, np.float32)
    for plane, target, shift in zip(voxels, out, shifts, strict=True):
        rows, target = (plane, target) if axis == 1 else (plane.T, target.T)
        first = int(np.floor(shift)) - low
        moved = _moved(rows, np.float32(shift - np.floor(shift)), fill)
        target[first : first + len(moved)] = moved
    return out


def _moved(rows: np.ndarray, part: np.float32, fill: float) -> np.ndarray:
    """Rows shifted by a `part` of a row, below 1; one row more unless it is 0."""
    edge = np.full((int(part > 0), rows.shape[1]), fill, np.float32)
    return (1 - part) * np.concatenate([rows, edge]) + part * np.concatenate([edge, rows])


def _between(voxels: np.ndarray, along: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Slices at the heights `wanted`, from those at `along`."""
    out = np.empty((len(wanted), *voxels.shape[1:]), np.float32)
    for number, height in enumerate(wanted):
        upper = int(np.clip(np.searchsorted(along, height), 1, len(along) - 1))
        part = _part_of_gap(along[upper - 1], along[upper], height)
        out[number] = (1 - part) * voxels[upper - 1] + part * voxels[upper]
    return out


def _part_of_gap(below: float, above: float, height: float) -> np.float32:
    """How far `height` is from one slice to the next, 0 to 1."""
    return np.float32(np.clip((height - below) / (above - below), 0, 1))
