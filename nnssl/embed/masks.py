"""The label files that belong to scans: of the same name, in folders of the same names.

A label file is compared by its path below the folder of masks, a scan by its path below the folder
that was given and by the names of the folders above it: the longest part that both have at their
ends decides. A file's name alone decides only where one scan and one label file have it. Where
several fit equally well there is no match: a mask of another patient would go unnoticed wherever
all scans have one grid.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nnssl.data.volumes import VOLUME_ENDINGS, ending, is_volume

CHANNEL = "_0000"  # at the end of an image's name in nnU-Net's datasets; its labels have none
TOP = ""  # no name of a folder: begins the whole path below the folder that was given

Parts = tuple[str, ...]  # of a path: folders, then the file's name without ending
ByEnd = Mapping[Parts, Sequence[Path]]  # files by what their paths end with


def find_label_files(folder: Path) -> list[Path]:
    """Label files at any depth. Raises FileNotFoundError, ValueError."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"mask folder {folder} does not exist; give a folder of label files"
        )
    if found := list(_volumes(folder)):
        return found
    raise ValueError(f"no masks in {folder}: searched for {', '.join(VOLUME_ENDINGS)}")


def _volumes(folder: Path) -> Iterator[Path]:
    """Files of volumes at any depth; hidden ones are none."""
    for where, _, names in os.walk(folder, followlinks=True):
        yield from (Path(where, name) for name in sorted(names) if is_volume(name))


def stem(name: str) -> str:
    """Without the ending of a volume's file."""
    return name[: len(name) - len(ending(name))]


def below(path: Path, tops: Sequence[Path]) -> Path:
    """The path below the first of `tops` that it lies in; a file that is given itself has none."""
    top = next((top for top in tops if path.is_relative_to(top)), path.parent)
    return path.relative_to(top) if path != top else Path(path.name)


def match_masks(
    scans: Iterable[Path], tops: Sequence[Path], masks: Sequence[Path], folder: Path
) -> dict[Path, Path]:
    """The label file of each scan that has one.

    scans: all that were found; tops: the folders and files that were given for them, the deepest
    first; masks: the label files in `folder`, of which those that are scans themselves are none.
    """
    scan_ends = {scan: _scan_ends(scan, tops) for scan in dict.fromkeys(scans)}
    not_masks = set(filter(None, map(_file_id, scan_ends)))
    mask_ends = {
        mask: _mask_ends(mask, folder) for mask in masks if _file_id(mask) not in not_masks
    }
    scans_by_end, masks_by_end = _by_end(scan_ends), _by_end(mask_ends)
    nearest = {scan: _nearest(ends, masks_by_end) for scan, ends in scan_ends.items()}
    return {
        scan: mask
        for scan, mask in nearest.items()
        if mask is not None and _nearest(mask_ends[mask], scans_by_end) == scan
    }


def _file_id(path: Path) -> tuple[int, int] | None:
    """The same for two paths of one file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


Ends = list[list[Parts]]  # the longest first; those of one length, which count alike, together


def _scan_ends(scan: Path, tops: Sequence[Path]) -> Ends:
    """With and without nnU-Net's _0000. Folders above the given one count as well: several may be
    given, one a patient.
    """
    names = dict.fromkeys([name := stem(scan.name), name.removesuffix(CHANNEL)])
    whole = (TOP, *below(scan, tops).parts[:-1])
    starts = [whole, *_ends(scan.parent.parts)]
    return [[(*start, name) for name in names] for start in starts]


def _mask_ends(mask: Path, folder: Path) -> Ends:
    folders = mask.relative_to(folder).parts[:-1]
    return [[(*start, stem(mask.name))] for start in [(TOP, *folders), *_ends(folders)]]


def _ends(parts: Parts) -> list[Parts]:
    """Of a path's parts, the longest first; the last is empty."""
    return [parts[first:] for first in range(len(parts) + 1)]


def _by_end(ends: Mapping[Path, Ends]) -> dict[Parts, list[Path]]:
    found: dict[Parts, list[Path]] = {}
    for path, of_path in ends.items():
        for end in (end for alike in of_path for end in alike):
            found.setdefault(end, []).append(path)
    return found


def _nearest(ends: Ends, others: ByEnd) -> Path | None:
    """The one of `others` with the longest end in common; None where there is none, or several."""
    found = ([path for end in alike for path in others.get(end, ())] for alike in ends)
    longest = next(filter(None, found), [])
    return longest[0] if len(longest) == 1 else None
