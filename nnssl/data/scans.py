"""Raw scans: find them at any depth, and read one as nnU-Net would."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnssl.data import patterns
from nnssl.data.dicom import (
    DICOM_ENDINGS,
    check_files,
    looks_like_dicom,
    read_series,
    require_modality,
)
from nnssl.data.orientation import Scan
from nnssl.data.raw_datasets import READER, chosen_channels, open_raw, read_image, series_of
from nnssl.data.refusals import check_grid
from nnssl.data.volumes import (
    VOLUME_ENDINGS,
    check_not_labels,
    check_voxels,
    ending,
    is_volume,
    read_volume,
)
from nnssl.files import NOWHERE, exists, is_file
from nnssl.host_memory import garbage_collection_paused
from nnssl.types import Spacing

LOOKED_FOR = f"{', '.join(VOLUME_ENDINGS)} and DICOM series"

ALL_SERIES = "*"
LOST, CLOSED, LABELS = (
    "links that lead nowhere",
    "folder that cannot be read",
    "files named as labels",
)
NOT_READ = (LOST, CLOSED, LABELS)

LABEL_FOLDERS = {"segmentations", "segmentation", "labels", "labelstr", "labelsts", "masks"}
LABEL_WORDS = {"seg", "segmentation", "segmentations", "label", "labels", "mask", "masks"}
LABEL_WORDS |= {"dseg", "probseg"}  # of BIDS


class Found(NamedTuple):
    """A scan that was found: a file, or one DICOM series (by its UID) of a folder.

    For a file of an nnU-Net raw dataset `series` names nnU-Net's reader, where that reads it
    otherwise than we do.

    ALL_SERIES stands for those of a folder whose headers nobody has read yet; NOT_READ for what is
    in a folder but is no scan, or cannot be read.
    """

    path: str
    series: str = ""

    @property
    def reader(self) -> str:
        """The name of nnU-Net's reader, where one is to read it; else ""."""
        return self.series.removeprefix(READER) if self.series.startswith(READER) else ""


@garbage_collection_paused()
def find_scans(
    folders: Sequence[Path | str],
    nnunet_dataset: Sequence[Path | str] | None = None,
    channels: Sequence[int] | None = (0,),
    wanted: Sequence[str] = (),
) -> list[Found]:
    """Volume files and folders with DICOM files below `folders`, and `channels` of nnU-Net raw
    datasets (None: all), each a scan by itself; sorted.

    Links are followed, each folder and file once; hidden files and folders are passed over, and so
    is what is no file: pipes, sockets, devices. Links that lead nowhere, folders that cannot be
    listed and files named as labels are found as such, a line for each folder. A file that is given
    itself is read whatever its name. A given folder that is absent is an error.

    wanted: patterns of paths below a folder (`patterns`); a DICOM folder is found where one of its
    files matches. What matches is read whatever its name. ValueError where nothing of a folder
    does.
    """
    seen: set = set()
    found = [
        scan for folder in folders for scan in _wanted_below(_existing_folder(folder), seen, wanted)
    ]
    for dataset in nnunet_dataset or ():
        found += _of_dataset(_existing_folder(dataset), channels)
    return sorted(set(found), key=lambda scan: (scan.path, scan.series))


def _existing_folder(folder: Path | str) -> Path:
    path = Path(folder).absolute()
    if not exists(path):
        raise FileNotFoundError(
            f"folder {folder} does not exist; give a folder that holds {LOOKED_FOR}, and that this "
            "user may read"
        )
    return path


def _wanted_below(top: Path, seen: set, wanted: Sequence[str]) -> list[Found]:
    before = set(seen)
    found = list(_below(top, seen, wanted))
    if wanted and not any(scan.series != CLOSED for scan in found):
        others = _below(top, before, ())
        raise patterns.nothing(top, wanted, (o.path for o in others if o.series not in NOT_READ))
    return found


def _below(top: Path, seen: set, wanted: Sequence[str]) -> Iterator[Found]:
    """Everything at any depth below `top` that is wanted; `top` may be a file as well."""
    if is_file(top):
        yield from _in_folder(top.parent, [top.name], seen)
        return
    closed: list[str] = []

    def note_closed(error: OSError) -> None:
        closed.append(error.filename)

    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=note_closed):
        subfolders[:] = _searched(subfolders)
        if _unless_closed(partial(_first_time, folder, seen), folder, closed):
            yield from _of_folder(Path(folder), names, top, seen, wanted)
        else:
            subfolders.clear()
    yield from (Found(folder, CLOSED) for folder in closed)


def _searched(subfolders: Sequence[str]) -> list[str]:
    """Neither hidden ones nor what macOS adds to archives."""
    return sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")


def _of_folder(
    folder: Path, names: Sequence[str], top: Path, seen: set, wanted: Sequence[str]
) -> Iterator[Found]:
    """What is wanted of the files `names` of a folder below `top`."""
    below = folder.relative_to(top)

    def is_wanted(name: str) -> bool:
        return not wanted or patterns.matches((below / name).as_posix(), wanted)

    labels = set() if wanted else set(_label_file_names(folder))
    others = sorted(name for name in names if not name.startswith(".") and name not in labels)
    yield from _in_folder(folder, list(filter(is_wanted, others)), seen)
    if labels:
        yield Found(str(folder), LABELS)
    if any(map(is_wanted, _lost(folder))):
        yield Found(str(folder), LOST)


def _in_folder(folder: Path, names: Sequence[str], seen: set) -> Iterator[Found]:
    """Volumes one by one; DICOM as soon as one file is: a folder of a million slices is opened
    once.
    """
    closed: list[str] = []
    others = [name for name in names if not name.lower().endswith(VOLUME_ENDINGS)]
    for name in names:
        if name.lower().endswith(VOLUME_ENDINGS):
            path = os.path.join(folder, name)  # noqa: PTH118 - called for every scan
            if _unless_closed(partial(_first_time, path, seen), name, closed):
                yield Found(path)
    if any(_unless_closed(partial(looks_like_dicom, folder / n), n, closed) for n in others):
        yield Found(str(folder), ALL_SERIES)
    if any(map(_may_be_scan, closed)):
        yield Found(str(folder), CLOSED)


def _unless_closed(look: Callable[[], bool], name: str, closed: list[str]) -> bool:
    """What `look` says of a file; False for one that cannot be looked at, and its name is added to
    `closed`.
    """
    try:
        return look()
    except OSError:
        closed.append(name)
        return False


def _lost(folder: Path | str) -> list[str]:
    """Broken links that are scans by their names, or have no ending, as slices of DICOM often have
    none.
    """
    scans = (link for link in _links(folder) if _may_be_scan(link.name))
    return [link.name for link in scans if _leads_nowhere(link.path)]


def _leads_nowhere(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        return error.errno in NOWHERE
    return False


def _links(folder: Path | str) -> list[os.DirEntry[str]]:
    """Those that are not hidden."""
    with os.scandir(folder) as entries:  # says what a link is without asking the disk for each file
        return [entry for entry in entries if entry.is_symlink() and not entry.name.startswith(".")]


def _may_be_scan(name: str) -> bool:
    return name.lower().endswith((*VOLUME_ENDINGS, *DICOM_ENDINGS)) or not Path(name).suffix


def _label_file_names(folder: Path | str) -> list[str]:
    """Labels of public datasets, beside their scans: `segmentations/liver.nii.gz`, `a_seg.nii`."""
    all_of_it = Path(folder).name.lower() in LABEL_FOLDERS
    names = os.listdir(folder)  # noqa: PTH208 - called for every folder of the collection
    volumes = filter(is_volume, names)
    return [name for name in volumes if all_of_it or _last_words(name) & LABEL_WORDS]


def _last_words(name: str) -> set[str]:
    """The word before the ending of a volume's name, and the one before the first dot: those of
    `a.seg.nrrd` and `seg.2.nrrd`.
    """
    stem = name.lower().removesuffix(ending(name))
    return {re.split("[._-]", part)[-1] for part in (stem, stem.split(".")[0])}


def not_read(found: Found) -> str:
    """The reason for a line of the report that is one of NOT_READ."""
    if found.series == LABELS:
        return (
            "files named as labels (by folder, or the last word of the name), not read: "
            f"{len(_label_file_names(found.path))}"
        )
    if found.series == CLOSED:
        return (
            "is a folder that cannot be listed, or that holds files which cannot be looked at: "
            "permission denied, or the disk does not respond"
        )
    return (
        f"links that lead nowhere: {len(_lost(found.path))} (with DataLad or git-annex, get the "
        "files first: git annex get .)"
    )


def _first_time(path: Path | str, seen: set) -> bool:
    """False for paths seen before under another name, for broken links, and for anything but files
    and folders. OSError for what cannot be looked at.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every scan of the collection
    except OSError as error:
        if error.errno in NOWHERE:
            return False
        raise
    key = (status.st_dev, status.st_ino)
    new = key not in seen and _is_file_or_folder(status.st_mode)
    seen.add(key)
    return new


def _is_file_or_folder(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _of_dataset(dataset: Path, channels: Sequence[int] | None) -> Iterator[Found]:
    """Channels of the training and test images of an nnU-Net raw dataset."""
    raw, chosen = open_raw(dataset), chosen_channels(dataset, channels)
    for case in (*raw.training, *raw.test):
        for image in map(case.channel, chosen):
            yield Found(str(image), series_of(image, raw.reader))


def read_found(found: Found, cache: Path | None = None) -> Scan:
    """One scan, in memory. Raises UnusableScanError for files that cannot be read or are not
    volumes.

    `cache`: folder where the series that were found in DICOM folders before are kept.
    """
    scan = _read_unchecked(found, cache)
    check_grid(scan.voxels.shape[::-1], scan.spacing[::-1], 1)
    return scan


def _read_unchecked(found: Found, cache: Path | None) -> Scan:
    if found.reader:
        return read_image(found.path, found.reader)
    if found.series:
        return read_series(found.path, found.series, cache)
    return read_volume(found.path)


def read_scan(found: Found, cache: Path | None = None) -> tuple[np.ndarray, Spacing]:
    """The voxels as float32 [Z Y X] and the spacing (z, y, x) in mm."""
    scan = read_found(found, cache)
    return scan.voxels, scan.spacing


def check_stored(found: Found, in_hu: bool, cache: Path | None = None) -> None:
    """Read the files of a scan to their end, before any reader does. Costs as much as reading it.

    UnusableScanError when they are broken, or cannot be CT (with in_hu); PassingError when the disk
    does not respond.
    """
    if found.series and not found.reader:
        require_modality(found.path, found.series, in_hu, cache)
        check_files(found.path, found.series, cache)
        return
    if in_hu:
        check_not_labels(found.path)
    check_voxels(found.path)
