"""Raw scans: find them, read them, and refuse with a reason what is not a CT volume in HU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.files import read_json
from nnssl.types import BODY_HU, Spacing

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LOOKED_FOR = f"{', '.join(VOLUME_ENDINGS)} and DICOM series"

SPACING_BOUNDS = (0.05, 15.0)  # mm; below is microscopy, above are localizers and missing headers
SMALLEST_AXIS = 8  # voxels
AIR_HU = -200.0  # every CT holds something below: air around the body, lung, gas in the bowel
TISSUE_HU = (-300.0, 400.0)  # where the median of the body lies; 241 real scans: -73 to 62
LARGEST_HU = 65536.0  # metal and padding stay below


class RefusedError(ValueError):
    """A scan that is left out; the message is the reason in the report."""


@dataclass(frozen=True, order=True)
class Found:
    """A scan that was found: a file, or one DICOM series (by its UID) of a folder."""

    path: str
    series: str = ""


def find_scans(folders: Sequence[Path | str], nnunet_dataset: Sequence[Path | str] | None = None) -> list[Found]:
    """Volume files below `folders`, at any depth, and the CT channel of nnU-Net raw dataset folders; sorted.

    Links are followed, each folder and file once; hidden files and folders are passed over. A folder that
    cannot be listed is passed over too. A given folder that is absent is an error.
    """
    seen: set = set()
    found = [Found(str(path)) for folder in folders for path in _walk(_existing(folder), seen) if _is_volume(path)]
    found += [Found(str(path)) for folder in nnunet_dataset or () for path in _channel_zero(_existing(folder))]
    return sorted(set(found))


def _existing(folder: Path | str) -> Path:
    path = Path(folder).absolute()
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {folder}; give a folder that holds {LOOKED_FOR}")
    return path


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUME_ENDINGS)


def _walk(top: Path, seen: set) -> Iterator[Path]:
    """Files below `top` (or `top` itself), each once, also where links make a loop."""
    if top.is_file():
        yield top
        return
    for folder, subfolders, names in os.walk(top, followlinks=True):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "__MACOSX")
        if not _first_time(folder, seen):
            subfolders.clear()
            continue
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and _first_time(path, seen):
                yield path


def _first_time(path: Path | str, seen: set) -> bool:
    """False for what was seen before under another name, and for broken links."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every file of the collection
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    new = key not in seen
    seen.add(key)
    return new


def _channel_zero(dataset: Path) -> Iterator[Path]:
    """Channel 0000 of the training and test images of an nnU-Net raw dataset."""
    if not (dataset / "dataset.json").is_file():
        raise FileNotFoundError(f"{dataset} holds no dataset.json, so it is not an nnU-Net raw dataset")
    ending = read_json(dataset / "dataset.json").get("file_ending", ".nii.gz")
    for part in ("imagesTr", "imagesTs"):
        if (dataset / part).is_dir():
            yield from (path for path in (dataset / part).iterdir() if path.name.endswith("_0000" + ending))


def read_scan(found: Found) -> tuple[np.ndarray, Spacing]:
    """The voxels as float32 [Z Y X] and the spacing (z, y, x) in mm, as nnU-Net reads them.

    Raises RefusedError for what cannot be read or is no volume. One scan is in memory.
    """
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(found.path)
    try:
        reader.ReadImageInformation()
        _check_header(reader)
        image = reader.Execute()
    except RuntimeError as error:
        raise RefusedError(f"cannot be read: {_short(error)}") from error
    spacing = tuple(abs(float(s)) for s in image.GetSpacing()[::-1])
    return SimpleITK.GetArrayViewFromImage(image).astype(np.float32), spacing


def _check_header(reader) -> None:
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise RefusedError(f"has {reader.GetNumberOfComponents()} components a voxel, a CT has one")
    if len(size) != 3:
        raise RefusedError(f"is not three-dimensional: size {tuple(size)}")
    if min(size) < SMALLEST_AXIS:
        raise RefusedError(f"is too small: size {tuple(size)}, at least {SMALLEST_AXIS} voxels an axis are needed")
    low, high = SPACING_BOUNDS
    if not all(low <= abs(s) <= high for s in reader.GetSpacing()):
        raise RefusedError(
            f"has an absurd spacing: {tuple(reader.GetSpacing())} mm (x, y, z), allowed is {low} to {high} mm"
        )


def _short(error: Exception) -> str:
    """The last line of an ITK error; the others are source lines and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def check_values(hu: np.ndarray) -> None:
    """Raise RefusedError unless the voxels [Z Y X] look like a CT in HU (documentation/data.md has the reasons)."""
    low, high = float(hu.min()), float(hu.max())
    if not np.isfinite([low, high]).all():
        raise RefusedError("holds NaN or infinite voxels")
    if low == high:
        raise RefusedError(f"is constant: every voxel is {low:g}")
    if low >= AIR_HU:
        raise RefusedError(f"is not in HU: no voxel below {AIR_HU:g} (values {low:g} to {high:g}), but CT holds air")
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
