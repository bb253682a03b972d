"""Raw scans: find them at any depth, and read one as nnU-Net would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.data.dicom import looks_like_dicom, read_series
from nnssl.data.nifti import check_nifti
from nnssl.data.refusals import RefusedError, check_grid, check_name, short
from nnssl.files import read_json
from nnssl.types import Spacing

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LOOKED_FOR = f"{', '.join(VOLUME_ENDINGS)} and DICOM series"

ALL_SERIES = "*"


@dataclass(frozen=True, order=True)
class Found:
    """A scan that was found: a file, or one DICOM series (by its UID) of a folder.

    ALL_SERIES stands for those of a folder whose headers nobody has read yet.
    """

    path: str
    series: str = ""


def find_scans(folders: Sequence[Path | str], nnunet_dataset: Sequence[Path | str] | None = None) -> list[Found]:
    """Volume files and folders with DICOM files below `folders`, and channel 0 of nnU-Net raw datasets; sorted.

    Links are followed, each folder and file once; hidden files and folders are passed over, and so are folders
    that cannot be listed. A given folder that is absent is an error.
    """
    seen: set = set()
    found = [scan for folder in folders for scan in _below(_existing(folder), seen)]
    found += [Found(str(path)) for folder in nnunet_dataset or () for path in _channel_zero(_existing(folder))]
    return sorted(set(found))


def _existing(folder: Path | str) -> Path:
    path = Path(folder).absolute()
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {folder}; give a folder that holds {LOOKED_FOR}")
    return path


def _below(top: Path, seen: set) -> Iterator[Found]:
    """Everything at any depth below `top`; `top` may be a file as well."""
    if top.is_file():
        yield from _in_folder(top.parent, [top.name], seen)
        return
    for folder, subfolders, names in os.walk(top, followlinks=True):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "__MACOSX")
        if _first_time(folder, seen):
            yield from _in_folder(Path(folder), sorted(n for n in names if not n.startswith(".")), seen)
        else:
            subfolders.clear()


def _in_folder(folder: Path, names: Sequence[str], seen: set) -> Iterator[Found]:
    """Volumes one by one; DICOM as soon as one file is: a folder of a million slices is opened once."""
    others = []
    for name in names:
        if not name.lower().endswith(VOLUME_ENDINGS):
            others.append(name)
        elif _first_time(folder / name, seen):
            yield Found(str(folder / name))
    if any(looks_like_dicom(folder / name) for name in others):
        yield Found(str(folder), ALL_SERIES)


def _first_time(path: Path | str, seen: set) -> bool:
    """False for what was seen before under another name, and for broken links."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every scan of the collection
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


def channel_is_ct(dataset: Path) -> bool:
    """Whether nnU-Net would treat channel 0 of a raw dataset as CT: by its name in dataset.json."""
    content = read_json(dataset / "dataset.json")
    names = content.get("channel_names") or content.get("modality") or {}
    return str(names.get("0", "CT")).lower() == "ct"


def read_scan(found: Found, cache: Path | None = None) -> tuple[np.ndarray, Spacing]:
    """The voxels as float32 [Z Y X] and the spacing (z, y, x) in mm, as nnU-Net reads them.

    Raises RefusedError for what cannot be read or is no volume. One scan is in memory. `cache`: folder where
    the answers of earlier looks into DICOM folders are kept.
    """
    voxels, spacing = read_series(found.path, found.series, cache) if found.series else _read_volume(found.path)
    check_grid(voxels.shape[::-1], spacing[::-1], 1)
    return voxels, spacing


def _read_volume(path: str) -> tuple[np.ndarray, Spacing]:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(check_name(path))
    try:
        reader.ReadImageInformation()
        check_grid(reader.GetSize(), reader.GetSpacing(), reader.GetNumberOfComponents())
        image = reader.Execute()
    except RuntimeError as error:
        raise RefusedError(f"cannot be read: {short(error)}") from error
    spacing = tuple(abs(float(s)) for s in image.GetSpacing()[::-1])
    return SimpleITK.GetArrayViewFromImage(image).astype(np.float32), spacing


def check_stored(found: Found) -> None:
    """Raise RefusedError for a file that is broken though it can be read. Costs as much as reading it."""
    if not found.series and found.path.lower().endswith((".nii", ".nii.gz")):
        check_nifti(found.path)
