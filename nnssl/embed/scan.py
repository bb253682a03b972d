"""Prepare a scan for the encoder: read, checked and resampled to the grid of the pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from nnssl.data.dicom import series_in
from nnssl.data.nifti import NIFTI_ENDINGS, affine_by_nibabel
from nnssl.data.orientation import Scan
from nnssl.data.plan import Plan, resampled_shape
from nnssl.data.preprocess import network_input
from nnssl.data.refusals import UnusableScanError, check_hu, check_values
from nnssl.data.scans import Found, check_stored, read_found
from nnssl.data.volumes import check_voxels, read_volume
from nnssl.hu import HUPolicy
from nnssl.types import Shape, Spacing

SAME_GRID = 0.1  # voxels; headers of the same grid differ by rounding
ANY_CROP = (96, 96, 96)  # a plan has one; preprocessing does not ask for it


@dataclass(frozen=True)
class Prepared:
    """A scan on the grid: `image` float32 [Z Y X] is what the encoder takes.

    body:   bool [Z Y X], the patient, lungs included: `outlined`.
    labels: integers [Z Y X], 0 is none; None where there are no masks.
    affine: [4 4], from voxel indices (x, y, z) of the grid to mm; None where it is unknown.
    """

    image: np.ndarray
    body: np.ndarray
    labels: np.ndarray | None = None
    affine: np.ndarray | None = None


def grid_plan(spacing: Spacing, hu: HUPolicy | None) -> Plan:
    """The plan that `nnssl.data` preprocesses by; spacing in mm (z, y, x)."""
    return Plan("features", tuple(spacing), hu, ANY_CROP, ())


def found_at(path: Path | str) -> Found:
    """The one scan of a path: a volume file, or a folder with one DICOM series.

    Raises FileNotFoundError, or UnusableScanError where it is none or several.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a volume file or a folder of DICOM files"
        )
    if path.is_file():
        return Found(str(path))
    return Found(str(path), _only_series(path))


def _only_series(folder: Path) -> str:
    """The uid of the one DICOM series of a folder. Raises UnusableScanError."""
    series = [uid for uid, one in series_in(str(folder)).items() if not one.reason]
    if len(series) != 1:
        raise UnusableScanError(
            f"{folder} holds {len(series)} readable DICOM series, exactly one is needed; choose "
            f"one:  nnssl.data.scans.Found(path, uid), uid one of {series}"
        )
    return series[0]


def checked(found: Found, in_hu: bool) -> Scan:
    """Read as the survey of a pretraining does. Raises UnusableScanError, which names the scan."""
    try:
        return _validated_scan(found, in_hu)
    except UnusableScanError as refusal:
        raise UnusableScanError(f"{found.path} {refusal}") from refusal


def _validated_scan(found: Found, in_hu: bool) -> Scan:
    check_stored(found, in_hu)
    scan = read_found(found)
    (check_hu if in_hu else check_values)(scan.voxels)
    return scan


def prepare_scan(scan: Scan, plan: Plan, labels: np.ndarray | None = None) -> Prepared:
    """On the plan's grid, by the very functions of the pretraining; labels by nearest neighbour."""
    shape = resampled_shape(scan.voxels.shape, scan.spacing, plan.spacing)
    standardised = plan.standardise(scan.voxels)
    image = network_input(standardised, scan.spacing, plan)[0]
    tissue = plan.body(scan.voxels, standardised)
    return Prepared(
        np.ascontiguousarray(image, np.float32),
        outlined(resampled_nearest(tissue, shape)),
        None if labels is None else resampled_nearest(labels, shape),
        _affine_on(shape, scan),
    )


def _affine_on(shape: Shape, scan: Scan) -> np.ndarray | None:
    """The affine of a scan on a grid of `shape`; None where the scan's own is unknown."""
    if scan.affine is None:
        return None
    return resampled_affine(scan.affine, scan.voxels.shape, shape)


def outlined(tissue: np.ndarray) -> np.ndarray:
    """bool [Z Y X]: tissue and everything it encloses in its slice, so lungs and bowel belong to
    the body.

    Tissue is as `Plan.body` finds it.
    """
    from scipy.ndimage import binary_fill_holes

    return np.stack([np.asarray(binary_fill_holes(plane)) for plane in tissue])


def resampled_nearest(volume: np.ndarray, shape: Shape) -> np.ndarray:
    """A volume or plane on a grid of `shape` with the same outer edges, as nnU-Net resamples."""
    where = [_nearest_along(*sizes) for sizes in zip(volume.shape, shape, strict=True)]
    return volume[np.ix_(*where)]


def _nearest_along(old: int, new: int) -> np.ndarray:
    """Along an axis of `old` voxels, the nearest to each of `new` voxels: integers [new]."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)


def resampled_affine(
    affine: np.ndarray, old: Shape, new: Shape, stride: Shape = (1, 1, 1)
) -> np.ndarray:
    """The affine of a grid with tokens of `stride` voxels of the shape `new`, on a scan of `old`.

    Shapes and stride are (z, y, x), affines take (x, y, z). Token i stands for the voxels from
    stride i to stride (i + 1), so its centre is there and not at its first voxel.
    """
    ratio = np.array(old[::-1]) / np.array(new[::-1]) * np.array(stride[::-1])
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = ratio / 2 - 0.5
    return affine @ step


def read_labels(path: Path, scan: Scan, source: Path | str = "") -> np.ndarray:
    """int32 [Z Y X] of a label file on the grid of `scan`, which was read from `source`. Raises
    UnusableScanError for another one.
    """
    check_voxels(path)  # of a truncated file ITK reads the rest as 0, which is no label
    labels = read_volume(path)
    _require_same_grid(path, labels, scan, source)
    whole = np.rint(labels.voxels)
    if not np.array_equal(whole, labels.voxels):
        raise UnusableScanError(f"its labels {path} are not integers")
    return whole.astype(np.int32)


def _require_same_grid(path: Path, labels: Scan, scan: Scan, source: Path | str) -> None:
    """Raises UnusableScanError where the voxels of the labels are not those of the scan.

    The same shape is not enough: labels that another program has stored with axes reversed would be
    pooled from the wrong places without a word.
    """
    if labels.voxels.shape != scan.voxels.shape:
        raise UnusableScanError(
            f"its labels {path} have shape {labels.voxels.shape}, but the scan has "
            f"{scan.voxels.shape}"
        )
    apart = _millimetres_apart(labels, scan)
    if apart > SAME_GRID * min(scan.spacing) and not _are_one_grid_to_nibabel(path, source):
        raise UnusableScanError(
            f"its labels {path} are on another grid: up to {apart:.3g} mm from the scan's voxels "
            f"({_geometry(labels)}; the scan has {_geometry(scan)}). Resample them to the scan, "
            "such as with SimpleITK.Resample(labels, scan, SimpleITK.Transform(), "
            "SimpleITK.sitkNearestNeighbor), or save them with the scan's geometry if only the "
            "header is wrong"
        )


def _are_one_grid_to_nibabel(path: Path | str, source: Path | str) -> bool:
    """Whether two files of NIfTI have the same affine by nibabel, with which many masks are
    written: it prefers the sform. ITK may take a scan's qform and the sform of its mask.
    """
    if not all(str(name).lower().endswith(NIFTI_ENDINGS) for name in (path, source)):
        return False
    return np.allclose(affine_by_nibabel(path), affine_by_nibabel(source), atol=1e-3)


def _millimetres_apart(one: Scan, other: Scan) -> float:
    """The largest distance between voxels of the same index; 0 where a place is unknown.

    The distance is convex over the grid, so it is largest at a corner.
    """
    if one.affine is None or other.affine is None:
        return 0.0
    ends = [(0, size - 1) for size in one.voxels.shape[::-1]]
    indices = np.array([(*index, 1) for index in product(*ends)])
    offsets = indices @ (one.affine - other.affine).T
    return float(np.linalg.norm(offsets[:, :3], axis=1).max())


def _geometry(scan: Scan) -> str:
    spacing = " ".join(f"{mm:.4g}" for mm in scan.spacing)
    first = " ".join(f"{mm:.4g}" for mm in scan.affine[:3, 3]) if scan.affine is not None else "?"
    return f"orientation {scan.orientation}, spacing {spacing} (z y x), first voxel at {first}"
