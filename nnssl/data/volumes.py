"""A scan in one file: checked before and while it is read, by ITK, and by nibabel where ITK refuses
a shear.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.data.nifti import NIFTI_ENDINGS, check_nifti, read_by_nibabel, read_nifti_header
from nnssl.data.orientation import Scan, is_permuted, unify
from nnssl.data.refusals import NOT_CT, UnusableScanError, check_grid, check_name, itk_error
from nnssl.data.text_headers import META_ENDINGS, NRRD_ENDINGS, read_text_header
from nnssl.data.text_volumes import check_text_volume

if TYPE_CHECKING:
    import SimpleITK

VOLUME_ENDINGS = (*NIFTI_ENDINGS, *NRRD_ENDINGS, *META_ENDINGS)
SHEARED = "sheared: read as a straight grid, as nnU-Net does"
# What ITK says of NIfTI that only nibabel reads, and our note.
BY_NIBABEL = {
    "orthonormal": SHEARED,
    "Unable to determine ImageIO": "NIfTI-2: read by nibabel, as nnU-Net can",
}


def ending(path: Path | str) -> str:
    """The ending by which a volume is recognised, or nothing."""
    return next(
        (e for e in sorted(VOLUME_ENDINGS, key=len, reverse=True) if str(path).lower().endswith(e)),
        "",
    )


def check_header(path: Path | str) -> str:
    """Refuse what no reader may be given. Returns what a reader will change: a note, or nothing.
    Costs nothing.
    """
    kind = ending(path)
    if kind in NIFTI_ENDINGS:
        read_nifti_header(path)
    elif kind:
        return SHEARED if read_text_header(path).sheared else ""
    return ""


def check_not_labels(path: Path | str) -> None:
    """UnusableScanError for what cannot be HU by its header alone: one byte or no sign, and no
    intercept below zero.

    So that of a folder of masks none is decompressed.
    """
    kind = ending(path)
    if kind in NIFTI_ENDINGS:
        header = read_nifti_header(path)
        unsigned = not header.scaled and (header.dtype.kind == "u" or header.dtype == np.int8)
    else:
        stored = read_text_header(path) if kind else None
        unsigned = stored is not None and (stored.unsigned or stored.size == 1)
    if unsigned:
        raise UnusableScanError(
            "is not in HU: stored as integers that cannot hold the values of air and lung, and "
            f"without an intercept, as labels are. {NOT_CT}"
        )


def check_voxels(path: Path | str) -> None:
    """Read the file to its end: UnusableScanError when it is broken though a reader might take it."""
    kind = ending(path)
    if kind in NIFTI_ENDINGS:
        check_nifti(path)
    elif kind:
        check_text_volume(path)


def read_volume(path: Path | str) -> Scan:
    """Raises UnusableScanError for what cannot be read or is no volume, MemoryError when memory is
    short.
    """
    note = check_header(check_name(path))
    try:
        reader = _information(path)
        check_grid(reader.GetSize(), reader.GetSpacing(), reader.GetNumberOfComponents())
        image = reader.Execute()
    except RuntimeError as error:
        if ending(path) in NIFTI_ENDINGS and (known := _only_nibabel(error)):
            return _by_nibabel(path, known)
        raise itk_error(error) from error
    import SimpleITK

    spacing = tuple(abs(float(s)) for s in image.GetSpacing()[::-1])
    voxels = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
    direction, origin = np.reshape(image.GetDirection(), (3, 3)), np.array(image.GetOrigin())
    return unify(Scan(voxels, spacing, note=note), direction, origin)


def _information(path: Path | str) -> SimpleITK.ImageFileReader:
    """An ITK reader that has read the header."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _only_nibabel(error: Exception) -> str:
    return next((note for words, note in BY_NIBABEL.items() if words in str(error)), "")


def _by_nibabel(path: Path | str, note: str) -> Scan:
    voxels, spacing, affine = read_by_nibabel(path)
    if voxels.ndim != 3:
        raise UnusableScanError(f"is not three-dimensional: size {voxels.shape[::-1]}")
    axes = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    direction = axes / np.linalg.norm(axes, axis=0).clip(1e-9)
    origin = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3]
    return unify(Scan(voxels, spacing, note=note), direction, origin)


def is_plain(path: Path | str) -> bool:
    """Whether ITK reads one channel on straight axes that `read_volume` leaves in their order."""
    try:
        check_header(check_name(path))
        image = _information(path)
    except (RuntimeError, UnusableScanError):
        return True  # to be refused, tried again, or read by nibabel, whoever is asked
    try:
        check_grid(image.GetSize(), image.GetSpacing(), image.GetNumberOfComponents())
    except UnusableScanError:
        return False
    return not is_permuted(np.reshape(image.GetDirection(), (3, 3)))
