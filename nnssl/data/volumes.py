"""A scan in one file: checked before and while it is read, by ITK, and by nibabel where ITK refuses
a shear.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.data.nifti import NIFTI_ENDINGS, check_nifti, read_by_nibabel, read_nifti_header
from nnssl.data.orientation import Scan, from_nibabel, is_permuted, unify
from nnssl.data.refusals import (
    NOT_CT,
    UnusableScanError,
    check_dimensions,
    check_grid,
    check_name,
    itk_error,
)
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
    longest_first = sorted(VOLUME_ENDINGS, key=len, reverse=True)
    return next((end for end in longest_first if str(path).lower().endswith(end)), "")


def is_volume(name: str) -> bool:
    """Whether a file is one by its name; hidden ones are none."""
    return name.lower().endswith(VOLUME_ENDINGS) and not name.startswith(".")


def check_header(path: Path | str) -> str:
    """Refuse files that no reader may open. Returns a note on what a reader will change, or "".
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
    if _is_unsigned(path):
        raise UnusableScanError(
            "is not in HU: stored as integers that cannot hold the values of air and lung, and "
            f"without an intercept, as labels are. {NOT_CT}"
        )


def _is_unsigned(path: Path | str) -> bool:
    kind = ending(path)
    if kind in NIFTI_ENDINGS:
        header = read_nifti_header(path)
        return header.holds_no_air and not header.scaled
    return bool(kind) and read_text_header(path).holds_no_air


def check_voxels(path: Path | str) -> None:
    """Read the file to its end. UnusableScanError when it is broken, which readers may not say."""
    kind = ending(path)
    if kind in NIFTI_ENDINGS:
        check_nifti(path)
    elif kind:
        check_text_volume(path)


def read_volume(path: Path | str) -> Scan:
    """Raises UnusableScanError for files that cannot be read or are not volumes, MemoryError when
    memory is short.
    """
    note = check_header(check_name(path))
    try:
        reader = _information(path)
        _check_grid(reader)
        image = reader.Execute()
    except RuntimeError as error:
        if ending(path) in NIFTI_ENDINGS and (known := _only_nibabel(error)):
            return _by_nibabel(path, known)
        raise itk_error(error) from error
    return _scan_of(image, note)


def _scan_of(image: SimpleITK.Image, note: str) -> Scan:
    import SimpleITK

    spacing = tuple(abs(float(mm)) for mm in image.GetSpacing()[::-1])
    voxels = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
    scan = Scan(voxels, spacing, note=note)
    return unify(scan, _direction(image), np.array(image.GetOrigin()))


def _direction(image: SimpleITK.Image | SimpleITK.ImageFileReader) -> np.ndarray:
    """The axes' unit vectors, the columns of [3 3]."""
    return np.reshape(image.GetDirection(), (3, 3))


def _check_grid(reader: SimpleITK.ImageFileReader) -> None:
    check_grid(reader.GetSize(), reader.GetSpacing(), reader.GetNumberOfComponents())


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
    check_dimensions(voxels.shape[::-1])
    return unify(Scan(voxels, spacing, note=note), *from_nibabel(affine))


def is_plain(path: Path | str) -> bool:
    """Whether ITK reads one channel on straight axes that `read_volume` leaves in their order."""
    try:
        check_header(check_name(path))
        reader = _information(path)
    except (RuntimeError, UnusableScanError):
        return True  # to be refused, tried again, or read by nibabel, whoever reads it
    try:
        _check_grid(reader)
    except UnusableScanError:
        return False
    return not is_permuted(_direction(reader))
