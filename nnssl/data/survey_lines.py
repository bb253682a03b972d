"""The lines of the survey as they are kept from run to run, in `<folder>/survey/`.

A line holds as long as the signature of its scan stays the same: path, size and time of change.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from nnssl.data.scans import Found
from nnssl.data.survey_report import ScanReport
from nnssl.files import fingerprint, read_json, write_json

LINES = "survey"  # the folder


def line_file(scan: Found, folder: Path) -> Path:
    """Where the line of a scan is kept."""
    return folder / LINES / f"{fingerprint([scan.path, scan.series])}.json"


def size_and_time(scan: Found) -> list[int]:
    """Size in bytes and time of change of a scan that is a file."""
    status = os.stat(scan.path)  # noqa: PTH116 - for every scan of the collection
    return [status.st_size, status.st_mtime_ns]


def keep_line(scan: Found, signature: list, folder: Path, line: ScanReport) -> None:
    write_json(line_file(scan, folder), {"signature": signature, "line": asdict(line)})


def adopt(before: Found, now: Found, folder: Path | str) -> bool:
    """Whether `now` is the scan that was `before`; its line then serves for the new path, if
    nothing changed.

    A DICOM series has its UID. A file has its size, and where the old one is still there, so that
    this may be another collection of the same names, its time of change as well.
    """
    file, old_file = line_file(now, Path(folder)), line_file(before, Path(folder))
    try:
        kept = read_json(old_file)
        known = list(kept["signature"][-2:])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return not Path(before.path).exists()
    compared = 2 if Path(before.path).exists() else 1
    if not now.series and size_and_time(now)[:compared] != known[:compared]:
        return False
    if not file.exists():
        line = {**kept["line"], "path": now.path, "series": now.series}
        write_json(file, {**kept, "line": line})
    return True


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


def pack_histogram(histogram: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(histogram.astype("<i8").tobytes())).decode()


def body_histograms(lines: Sequence[ScanReport], folder: Path | str) -> Iterator[np.ndarray]:
    """Of each line in turn, read from where it is kept."""
    for line in lines:
        packed = read_json(line_file(line.found, Path(folder)))["line"]["histogram"]
        yield np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8")
