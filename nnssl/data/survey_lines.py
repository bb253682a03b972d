"""The lines of the survey as they are kept from run to run, in `<folder>/survey/`.

A line holds as long as the signature of its scan stays the same: path, size and time of change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnssl.data.packing import pack, unpack
from nnssl.data.scans import Found
from nnssl.data.survey_report import ScanReport
from nnssl.files import fingerprint, read_json, write_json

LINES = "survey"  # the folder


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
    this may be another collection of the same names, its time of change as well.
    """
    try:
        kept = read_json(line_file(before, Path(folder)))
        known = list(kept["signature"][-2:])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return not Path(before.path).exists()
    if not _is_same(before, now, known):
        return False
    if not (file := line_file(now, Path(folder))).exists():
        line = {**kept["line"], "path": now.path, "series": now.series}
        write_json(file, {**kept, "line": line})
    return True


def _is_same(before: Found, now: Found, known: list[int]) -> bool:
    """`known`: size and time of change of a file that was `before`."""
    compared = 2 if Path(before.path).exists() else 1
    return bool(now.series) or size_and_time(now.path)[:compared] == known[:compared]


def kept_line(scan: Found, signature: list, folder: Path) -> ScanReport | None:
    """The line of an earlier survey without its histogram; None where the scan has changed since,
    or the line is damaged.
    """
    try:
        kept = read_json(line_file(scan, folder))
        known = ScanReport.without_histogram(kept["line"])
        return known if kept["signature"] == signature else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_kept(line: ScanReport, folder: Path) -> bool:
    """Whether this reason is what was kept of the scan, and not one of before it changed."""
    try:
        return read_json(line_file(line.found, folder))["line"]["reason"] == line.reason
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pack_histogram(histogram: np.ndarray) -> str:
    return pack(histogram.astype("<i8"))


def body_histograms(lines: Sequence[ScanReport], folder: Path | str) -> Iterator[np.ndarray]:
    """The histogram of each line in turn, read from where it is kept."""
    for line in lines:
        packed = read_json(line_file(line.found, Path(folder)))["line"]["histogram"]
        yield np.frombuffer(unpack(packed), "<i8")
