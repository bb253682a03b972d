"""The lines of the survey as they are kept from run to run, in `<folder>/survey/`.

A line holds as long as the signature of its scan stays the same: path, size and time of change.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnssl.data.packing import pack, unpack
from nnssl.data.scans import Found
from nnssl.data.survey_report import ScanReport
from nnssl.files import exists, fingerprint, read_json, write_json

LINES = "survey"  # the folder
# how the reason ended that earlier versions gave for headers of MetaImage which are read now
FORMER = "is not KEY = VALUE, or repeats a key"


def line_file(scan: Found, folder: Path) -> Path:
    """Where the line of a scan is kept."""
    return folder / LINES / f"{fingerprint([scan.path, scan.series])}.json"


def size_and_time(path: Path | str) -> list[int]:
    """Size in bytes and time of change of a file."""
    status = os.stat(path)  # noqa: PTH116 - for every scan of the collection
    return [status.st_size, status.st_mtime_ns]


def keep_line(scan: Found, signature: list, folder: Path, line: ScanReport) -> None:
    write_json(line_file(scan, folder), {"signature": signature, "line": line.without("state")})


def is_same_scan(before: Found, now: Found, folder: Path | str) -> bool:
    """Whether `now` is the scan that was `before`; its line then serves for the new path, if
    nothing changed.

    A DICOM series has its UID. A file has its size, and where the old one is still there, so that
    this may be another collection of the same names, its time of change as well. A file with
    another time of change is read again by the survey; `has_other_contents` then compares.
    """
    try:
        kept = read_json(line_file(before, Path(folder)))
        known = list(kept["signature"][-2:])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return not exists(before.path)
    if not _is_same(before, now, known):
        return False
    if not (file := line_file(now, Path(folder))).exists():
        line = {**kept["line"], "path": now.path, "series": now.series}
        write_json(file, {**kept, "line": line})
    return True


def _is_same(before: Found, now: Found, known: list[int]) -> bool:
    """`known`: size and time of change of a file that was `before`."""
    compared = 2 if exists(before.path) else 1
    is_dicom = now.series and not now.reader
    return bool(is_dicom) or size_and_time(now.path)[:compared] == known[:compared]


def has_other_contents(before: Found, now: Found, folder: Path | str) -> bool:
    """Whether the survey's lines of two scans say that their voxels differ. False where the line of
    one cannot be read.
    """
    try:
        one, other = (_contents(line_file(scan, Path(folder))) for scan in (before, now))
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        return False
    return one.keys() != other.keys() or not all(
        np.allclose(one[name], other[name], rtol=1e-5, atol=0.01) for name in one
    )


def _contents(path: Path) -> dict[str, np.ndarray]:
    """What a kept line says of the voxels. The axes are in a name, so that only arrays of one size
    are compared.
    """
    line = read_json(path)["line"]
    lists = {name: np.array(line[name], float) for name in ("spacing", "percentiles")}
    if line["histogram"]:
        lists["histogram"] = _unpacked(line["histogram"])
    return {f"voxels {line['shape']}": np.empty(0), **lists}


def kept_line(scan: Found, signature: list, folder: Path) -> ScanReport | None:
    """The line of an earlier survey without its histogram; None where the scan has changed since,
    the line is damaged, or it `is_outdated`.
    """
    try:
        kept = read_json(line_file(scan, folder))
        known = ScanReport.without_histogram(kept["line"])
        same = kept["signature"] == signature and not is_outdated(known.reason)
        return known if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_outdated(reason: str) -> bool:
    """Whether an earlier version refused a scan that this one may read."""
    return reason.endswith(FORMER)


def is_kept(line: ScanReport, folder: Path) -> bool:
    """Whether this reason is what was kept of the scan, and not one of before it changed."""
    try:
        return read_json(line_file(line.found, folder))["line"]["reason"] == line.reason
    except (OSError, ValueError, KeyError, TypeError):
        return False


def orientation_of(scan: Found, folder: Path) -> str:
    """Of the scan as stored, such as LPS; empty where no line of it is kept, or it is damaged."""
    try:
        name = read_json(line_file(scan, folder))["line"]["orientation"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def pack_histogram(histogram: np.ndarray) -> str:
    return pack(histogram.astype("<i8"))


def body_histograms(lines: Sequence[ScanReport], folder: Path | str) -> Iterator[np.ndarray]:
    """The histogram of each line in turn, read from where it is kept."""
    for line in lines:
        yield _unpacked(read_json(line_file(line.found, Path(folder)))["line"]["histogram"])


def _unpacked(histogram: str) -> np.ndarray:
    return np.frombuffer(unpack(histogram), "<i8")
