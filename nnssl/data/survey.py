"""The survey: what was found, what is left out and why, and what the plan needs to know of each
scan.

Each scan's answer is kept in `<folder>/survey/`, by path, size and time of change, so that no scan
is read twice; all of them without histograms in one file besides (`nnssl.data.answers`).
"""

from __future__ import annotations

import base64
import csv
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from nnssl.data.answers import Index, ScanReport, place
from nnssl.data.dicom import series_in
from nnssl.data.refusals import UnusableScanError, check_hu, check_values
from nnssl.data.scans import ALL_SERIES, LOOKED_FOR, NOT_READ, Found, check_stored, not_read, read
from nnssl.data.workers import Failed, parallel_map
from nnssl.files import NoRoomError, atomic, read_json, write_json
from nnssl.memory import uncollected
from nnssl.types import BODY_HU

REPORTS = ("report.json", "report.csv")
HISTOGRAM = (int(BODY_HU), 3000)  # HU of the first and the last bin of the body histogram
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
NAMES: dict = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # file names need not be valid UTF-8
SURVEY_VERSION = 2  # goes up when a change in these rules makes old answers wrong


def survey(
    scans: Sequence[Found],
    folder: Path | str,
    num_processes: int,
    part_id: int = 0,
    num_parts: int = 1,
    in_hu: bool = True,
    planned: bool = False,
) -> list[ScanReport]:
    """Look at every scan once; returns one line a scan, sorted by path and series, and writes the
    report.

    in_hu: the scans are CT, and what is not in HU is left out.
    planned: there is a plan, so nobody will read the histograms, and known answers need not be
    opened: what `answers.Index` says of them is taken.

    With several parts each looks at its own part first, then at what the others have not done yet:
    no part waits for another, and each ends with the whole survey. The lines come without their
    histograms.
    """
    folder = Path(folder)
    own_first = partial(_own_first, part_id=part_id, num_parts=num_parts)
    rules = [SURVEY_VERSION, *([] if in_hu else ["any"])]
    signatures, failed = _signatures(scans, folder, num_processes, own_first, rules)
    index = Index(folder, signatures if planned else {})
    with uncollected():
        known = {
            scan: index.known.get(scan) or _known(scan, signature, folder)
            for scan, signature in signatures.items()
        }
    new = sorted((s for s, line in known.items() if line is None), key=_by_path)
    todo = own_first([(scan, signatures[scan]) for scan in new])
    # Failures are not kept: with more memory, or fewer workers, the next run may do better.
    work = partial(_look_and_keep, folder=folder, in_hu=in_hu)
    with closing(parallel_map(work, todo, num_processes, "survey")) as results:
        for (scan, _), result in results:
            if isinstance(result, Failed):
                if result.no_room:
                    raise NoRoomError(result.reason)
                failed[scan] = result.reason
    read_once = (
        (scan, known[scan] or _known(scan, signature, folder))
        for scan, signature in signatures.items()
        if scan not in failed
    )
    answers = {scan: line for scan, line in read_once if line is not None}
    lines = list(answers.values())
    lines += [ScanReport(scan.path, scan.series, False, reason) for scan, reason in failed.items()]
    lines.sort(key=_by_path)
    there = all((folder / name).exists() for name in REPORTS)
    if not (there and index.says(answers, failed)):
        write_report(lines, folder, in_hu)
        index.keep(answers, signatures, failed)
    return lines


def _by_path(scan: Found | ScanReport) -> tuple[str, str]:
    return scan.path, scan.series


def _own_first(items: Sequence, part_id: int, num_parts: int) -> list:
    return [
        *items[part_id::num_parts],
        *(item for i, item in enumerate(items) if i % num_parts != part_id),
    ]


def _signatures(
    scans: Sequence[Found], folder: Path, num_processes: int, own_first: Callable, rules: list
) -> tuple[dict[Found, list], dict[Found, str]]:
    """What changes when a scan changes, for each; DICOM folders become their series. And what
    failed already.
    """
    signatures, failed = _of_files(scans, rules)
    dicom = own_first([scan for scan in scans if scan.series == ALL_SERIES])
    work = partial(_series_signatures, folder=folder)
    with closing(parallel_map(work, dicom, num_processes, "DICOM headers")) as results:
        for scan, uids in results:
            if isinstance(uids, Failed):
                failed[scan] = uids.reason
            else:
                signatures |= {
                    Found(scan.path, uid): [*rules, *signature] for uid, signature in uids.items()
                }
    return signatures, failed


@uncollected()
def _of_files(scans: Sequence[Found], rules: list) -> tuple[dict[Found, list], dict[Found, str]]:
    """The same, of all but DICOM folders."""
    signatures, failed = {}, {}
    for scan in scans:
        if scan.series in NOT_READ:
            failed[scan] = not_read(scan)
        elif scan.series != ALL_SERIES:
            try:
                status = os.stat(scan.path)  # noqa: PTH116 - for every scan of the collection
                signatures[scan] = [*rules, status.st_size, status.st_mtime_ns]
            except OSError as error:
                failed[scan] = f"cannot be read: {error.strerror}"
    return signatures, failed


def _series_signatures(scan: Found, folder: Path) -> dict[str, list]:
    return {
        uid: series.signature(scan.path)
        for uid, series in series_in(scan.path, cache=folder).items()
    }


def _look_and_keep(item: tuple[Found, list], folder: Path, in_hu: bool) -> None:
    scan, signature = item
    if not _known(scan, signature, folder):  # another part may have done it meanwhile
        write_json(
            place(scan, folder),
            {"signature": signature, "line": asdict(inspect_scan(scan, folder, in_hu))},
        )


def inspect_scan(found: Found, cache: Path | None = None, in_hu: bool = True) -> ScanReport:
    """Read one scan and say what it is, or why it is left out.

    Raises PassingError and MemoryError when that cannot be known now.
    """
    seen = ScanReport(found.path, found.series, False)
    try:
        check_stored(found, in_hu, cache)
        scan = read(found, cache)
        seen = replace(
            seen, shape=scan.voxels.shape, spacing=scan.spacing, orientation=scan.orientation
        )
        (check_hu if in_hu else check_values)(scan.voxels)
    except UnusableScanError as refusal:
        return replace(seen, reason=str(refusal))
    percentiles = tuple(round(float(p), 2) for p in np.percentile(scan.voxels, PERCENTILES))
    histogram = _pack(body_histogram(scan.voxels)) if in_hu else ""
    return replace(seen, kept=True, percentiles=percentiles, histogram=histogram, note=scan.note)


def body_histogram(hu: np.ndarray) -> np.ndarray:
    """Number of body voxels at each whole HU from BODY_HU to 3000; what is higher counts as 3000."""
    low, high = HISTOGRAM
    body = np.rint(hu[hu > BODY_HU]).clip(low, high).astype(np.int64)
    return np.bincount(body - low, minlength=high - low + 1)


def _pack(histogram: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(histogram.astype("<i8").tobytes())).decode()


def body_histograms(lines: Sequence[ScanReport], folder: Path | str) -> Iterator[np.ndarray]:
    """The body histogram of each kept line as integers, read one at a time."""
    for line in lines:
        packed = read_json(place(line.found, Path(folder)))["line"]["histogram"]
        yield np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8")


def adopt(before: Found, now: Found, folder: Path | str) -> bool:
    """Whether `now` is the scan that was `before`; its answer then serves for the new path, if
    nothing changed.

    A DICOM series has its UID. A file has its size, and where the old one is still there, so that
    this may be another collection of the same names, its time of change as well.
    """
    folder = Path(folder)
    try:
        kept = read_json(place(before, folder))
        size_and_time = list(kept["signature"][-2:])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return not Path(before.path).exists()
    if not now.series:
        status = Path(now.path).stat()
        is_same = [status.st_size, status.st_mtime_ns]
        known = 2 if Path(before.path).exists() else 1
        if size_and_time[:known] != is_same[:known]:
            return False
    if not place(now, folder).exists():
        write_json(
            place(now, folder),
            {**kept, "line": {**kept["line"], "path": now.path, "series": now.series}},
        )
    return True


def _known(scan: Found, signature: list, folder: Path) -> ScanReport | None:
    """The answer of an earlier look, unless the scan has changed since, or the answer is damaged."""
    try:
        kept = read_json(place(scan, folder))
        line = {**kept["line"], "histogram": ""}
        given: dict = {k: tuple(v) if isinstance(v, list) else v for k, v in line.items()}
        known = ScanReport(**given)
        return known if kept["signature"] == signature else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@uncollected()
def write_report(lines: Sequence[ScanReport], folder: Path | str, in_hu: bool = True) -> None:
    """`report.json` and `report.csv`: path, kept or left out, why, shape, spacing, percentiles (HU
    for CT) and more.
    """
    names = [f"{'hu' if in_hu else 'value'}_{p:g}" for p in PERCENTILES]
    rows = [
        {
            "path": line.path,
            "series": line.series,
            "kept": line.kept,
            "reason": line.reason,
            "shape": list(line.shape),
            "spacing": [round(s, 4) for s in line.spacing],
            **dict(zip(names, line.percentiles or [None] * len(names), strict=True)),
            "orientation": line.orientation,
            "note": line.note,
        }
        for line in lines
    ]
    kept = sum(line.kept for line in lines)
    write_json(
        Path(folder) / "report.json",
        {
            "found": len(lines),
            "kept": kept,
            "left_out": len(lines) - kept,
            "orientations": dict(Counter(line.orientation for line in lines if line.kept)),
            "scans": rows,
        },
    )
    with atomic(Path(folder) / "report.csv") as path, path.open("w", newline="", **NAMES) as file:
        table = csv.writer(file)
        table.writerow(
            ["path", "series", "kept", "reason", "shape", "spacing", *names, "orientation", "note"]
        )
        for row in rows:
            joined = {key: "x".join(map(str, row[key])) for key in ("shape", "spacing")}
            table.writerow((row | joined).values())


def nothing_usable(lines: Sequence[ScanReport], sources: Sequence) -> ValueError:
    """The error for a collection without a usable scan: what was looked for, where, and what was
    found.
    """
    where = ", ".join(str(s) for s in sources)
    if not lines:
        return ValueError(
            f"no scans in {where}: looked for {LOOKED_FOR} at any depth and found none"
        )
    reasons = "\n".join(f"  {line.path}: {line.reason}" for line in lines[:10])
    return ValueError(
        f"none of the {len(lines)} scans found in {where} can be used; looked for {LOOKED_FOR}. "
        f"Left out:\n{reasons}"
    )
