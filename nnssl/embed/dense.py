"""One map of a scan in full, with its place in the patient: dense/<case>.npz or .nii.gz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.embed.npz import write_npz
from nnssl.embed.scan import Prepared, resampled_affine
from nnssl.embed.scan_encoder import Encoder
from nnssl.embed.table import ScanRow
from nnssl.types import Shape

FOLDER = "dense"
ENDING = {False: ".npz", True: ".nii.gz"}  # by whether it is to be NIfTI


def stage_of(encoder: Encoder, stride: int) -> int:
    """The number of the map whose tokens are `stride` voxels apart. Raises ValueError."""
    known = [max(strides) for strides in encoder.strides]
    if stride not in known:
        raise ValueError(
            f"--dense {stride}: the feature maps of this encoder have strides of "
            f"{', '.join(map(str, known))} voxels"
        )
    return known.index(stride)


def map_path(folder: Path, row: ScanRow, nifti: bool) -> Path:
    return files.inside(folder / FOLDER, row.case + ENDING[nifti])


def write_feature_map(
    folder: Path,
    row: ScanRow,
    encoder: Encoder,
    scan: Prepared,
    features: np.ndarray,
    number: int,
    nifti: bool,
) -> None:
    """`features` [C *grid] in half precision, or as NIfTI (x, y, z, 1, C) in single precision.

    The affine takes token indices (x, y, z) to mm; where the file's place is unknown, its origin is
    zero.
    """
    path, stride = map_path(folder, row, nifti), encoder.strides[number]
    affine = _affine(encoder, scan, stride)
    if nifti:
        _write_nifti(path, features, affine)
        return
    place_of = {"affine": affine, "stride": np.array(stride)}
    half = features.astype(np.float16)
    write_npz(path, {"features": half, **place_of, "id": np.array(row.id)})


def _affine(encoder: Encoder, scan: Prepared, stride: Shape) -> np.ndarray:
    """[4 4], from a token's indices (x, y, z) to mm."""
    affine = scan.affine
    if affine is None:
        affine = np.diag([*encoder.spacing[::-1], 1.0])
    return resampled_affine(affine, scan.image.shape, scan.image.shape, stride)


def _write_nifti(path: Path, features: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    image = nibabel.Nifti1Image(_vector_volume(features), affine)
    image.header.set_intent("vector")
    with files.atomic(path) as temporary:
        nibabel.save(image, temporary)


def _vector_volume(features: np.ndarray) -> np.ndarray:
    """[C Z Y X] as NIfTI stores a vector at each voxel: float32 (x, y, z, 1, C)."""
    return np.ascontiguousarray(features.transpose(3, 2, 1, 0)[:, :, :, None], np.float32)
