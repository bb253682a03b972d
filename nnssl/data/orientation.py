"""Where the axes of a scan run in the patient, and one order of axes for all scans.

An orientation is named by the directions in which x, y and z run: LPS is a supine patient as CT
slices are stored (to the left, to the back, to the head). The patient's frame is that of DICOM and
ITK: x to the left, y to the back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from nnssl.types import Spacing

Flips = tuple[bool, bool, bool]  # of x, y and z
UNIFIED = "LPS"
NO_FLIP: Flips = (False, False, False)
# between DICOM's frame and nibabel's, which runs to the right and to the front
FLIPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Scan:
    """Voxels float32 [Z Y X], spacing (z, y, x) in mm, orientation as stored, and what was changed
    in reading.

    affine: [4 4], from voxel indices (x, y, z) to mm in nibabel's frame; None where it is unknown.
    """

    voxels: np.ndarray
    spacing: Spacing
    orientation: str = ""
    note: str = ""
    affine: np.ndarray | None = None


def turns(direction: np.ndarray) -> np.ndarray:
    """nibabel's orientation [3 2] of axes whose unit vectors are the columns of [3 3]."""
    from nibabel.orientations import io_orientation

    return io_orientation(_nibabel_affine(direction))


def _nibabel_affine(direction: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
    """[4 4] of the axes [3 3] and the first voxel [3] in DICOM's frame."""
    affine = np.eye(4)
    affine[:3, :3] = FLIPS @ direction
    if origin is not None:
        affine[:3, 3] = FLIPS @ origin
    return affine


def from_nibabel(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axes' unit vectors [3 3] and the first voxel [3] in DICOM's frame."""
    axes = FLIPS @ affine[:3, :3]
    return axes / np.linalg.norm(axes, axis=0).clip(1e-9), FLIPS @ affine[:3, 3]


def are_coplanar(axes: np.ndarray) -> bool:
    """Whether three unit vectors [3 3] lie in one plane, or nearly so."""
    return bool(abs(np.linalg.det(axes)) < 1e-3)


def off_right_angles(axes: np.ndarray) -> float:
    """How far unit vectors [N 3] are from right angles; 0 for orthonormal ones."""
    return float(np.abs(axes @ axes.T - np.eye(len(axes))).max())


def is_permuted(direction: np.ndarray) -> bool:
    """Whether z of the array is not the patient's axis from feet to head, as in volumes stored
    sagittally.
    """
    return turns(direction)[:, 0].tolist() != [0, 1, 2]


def describe_mixture(names: Iterable[str]) -> str:
    """The message on the orientations of a collection; empty if there is only one."""
    counts = Counter(filter(None, names))
    if len(counts) < 2:
        return ""
    summary = ", ".join(f"{name} {number}" for name, number in counts.most_common())
    return (
        f"scans are stored in {len(counts)} orientations (directions of x, y and z): {summary}. "
        f"Axes in another order are brought to {UNIFIED}, axes that run the other way stay, as in "
        "nnU-Net; report.csv names that of each"
    )


def flipped_axes(name: str, other: str) -> Flips:
    """Which axes run the other way in the arrays that `unify` gives of scans with the orientations
    `name` and `other`. None does where one of them is unknown.
    """
    one, two = _in_array(name), _in_array(other)
    if not (one and two):
        return NO_FLIP
    return one[0] != two[0], one[1] != two[1], one[2] != two[2]


def _in_array(name: str) -> str:
    """The orientation after `unify`; empty where it is unknown."""
    if len(name) != 3 or "?" in name:
        return ""
    in_order = all(axis in pair for axis, pair in zip(name, ("LR", "PA", "SI"), strict=True))
    return name if in_order else UNIFIED


def unify(scan: Scan, direction: np.ndarray, origin: np.ndarray | None = None) -> Scan:
    """`scan` with its orientation and its affine; where axes are permuted, in the order LPS.

    direction: [3 3], the axes' unit vectors; origin: [3], of the first voxel in mm; both of DICOM's
    frame. Without an origin there is no affine.

    Permuted axes would mix the spacing of slices with that in their plane. Axes that only run the
    other way stay as they are, since nnU-Net leaves them too.
    """
    name = _orientation_name(direction)
    affine = None if origin is None else _affine_of(scan.spacing, direction, origin)
    placed = replace(scan, orientation=name, affine=affine)
    if "?" in name or not is_permuted(direction):
        return placed
    return _reordered(placed, direction)


def _orientation_name(direction: np.ndarray) -> str:
    """Such as LPS; a ? for an axis that has no direction."""
    from nibabel.orientations import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(_nibabel_affine(direction)))


def _affine_of(spacing: Spacing, direction: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """`Scan.affine`, of axes and first voxel in DICOM's frame."""
    return _nibabel_affine(direction, origin) @ np.diag([*spacing[::-1], 1.0])


def _reordered(scan: Scan, direction: np.ndarray) -> Scan:
    """`scan` with its axes in the order of UNIFIED."""
    from nibabel.orientations import (
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        ornt_transform,
    )

    change = ornt_transform(turns(direction), axcodes2ornt(UNIFIED))
    reordered = apply_orientation(scan.voxels.transpose(), change)
    affine = scan.affine
    if affine is not None:
        affine = affine @ inv_ornt_aff(change, scan.voxels.shape[::-1])
    note = f"axes reordered from {scan.orientation} to {UNIFIED}"
    return replace(
        scan,
        voxels=np.ascontiguousarray(reordered.transpose()),
        spacing=_permuted(scan.spacing, change),
        note="; ".join(filter(None, [scan.note, note])),
        affine=affine,
    )


def _permuted(spacing: Spacing, change: np.ndarray) -> Spacing:
    """(z, y, x) of axes reordered by nibabel's `change` [3 2] of (x, y, z)."""
    permuted = [0.0, 0.0, 0.0]
    for own, (axis, _) in zip(spacing[::-1], change, strict=True):
        permuted[int(axis)] = own
    return tuple(permuted[::-1])
