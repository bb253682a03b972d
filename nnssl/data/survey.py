"""The survey: the scans found, those left out with reasons, and the facts that the plan needs.

Each scan's line is kept (`survey_lines`), so that no scan is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from nnssl.data.dicom import series_in
from nnssl.data.refusals import UnusableScanError, check_hu, check_values
from nnssl.data.scans import (
    ALL_SERIES,
    LOOKED_FOR,
    NOT_READ,
    Found,
    check_stored,
    not_read,
    read_found,
)
from nnssl.data.survey_index import Index
from nnssl.data.survey_lines import keep_line, kept_line, pack_histogram, size_and_time
from nnssl.data.survey_report import (
    CSV_REPORT,
    JSON_REPORT,
    PERCENTILES,
    ScanReport,
    write_report,
)
from nnssl.data.workers import Failed, parallel_map
from nnssl.host_memory import garbage_collection_paused
from nnssl.types import BODY_HU

HISTOGRAM = (int(BODY_HU), 3000)  # HU of the first and the last bin of the body histogram
SURVEY_VERSION = 2  # goes up when a change in these rules makes kept lines wrong
_by_path = attrgetter("path", "series")  # of scans and of their lines


def survey(
    scans: Sequence[Found],
    folder: Path | str,
    num_processes: int,
    part_id: int = 0,
    num_parts: int = 1,
    in_hu: bool = True,
    histograms: bool = True,
) -> list[ScanReport]:
    """Inspect every scan once; returns one line per scan, sorted by path and series, and writes the
    report.

    in_hu: the scans are CT, and what is not in HU is left out.
    histograms: they will be read (`body_histograms`), so each kept line is opened. Else the index
    of the lines will do.

    With several parts each looks at its own part first, then at what the others have not done yet:
    no part waits for another, and each ends with the whole survey. The lines come without their
    histograms.
    """
    folder = Path(folder)
    own_first = partial(_own_first, part_id=part_id, num_parts=num_parts)
    rules = [SURVEY_VERSION, *([] if in_hu else ["any"])]
    signatures, failed = _signatures(scans, folder, num_processes, own_first, rules)
    index = Index(folder, {} if histograms else signatures)
    known = index.known | _kept_lines(_but(signatures, index.known), folder)
    new = sorted(signatures.keys() - known.keys(), key=_by_path)
    todo = own_first([(scan, signatures[scan]) for scan in new])
    failed |= _inspect_all(todo, folder, num_processes, in_hu)
    inspected = {scan: signatures[scan] for scan in new if scan not in failed}
    known |= _kept_lines(inspected, folder)
    lost = inspected.keys() - known.keys()
    failed |= dict.fromkeys(lost, "its survey entry cannot be read back")
    lines = _all_lines(known, failed)
    if not (index.says(known, failed) and is_reported(folder)):
        write_report(lines, folder, in_hu)
        index.keep(known, signatures, failed)
    return _with_states(lines, signatures)


@garbage_collection_paused()
def _with_states(lines: Sequence[ScanReport], signatures: Mapping[Found, list]) -> list[ScanReport]:
    """Each with the end of its scan's signature: other rules of a survey do not change it."""
    return [replace(line, state=tuple(signatures.get(line.found, ())[-2:])) for line in lines]


@garbage_collection_paused()
def _all_lines(known: Mapping[Found, ScanReport], failed: Mapping[Found, str]) -> list[ScanReport]:
    """Those of what is kept and of what is left out, sorted."""
    left_out = [ScanReport(scan.path, scan.series, False, why) for scan, why in failed.items()]
    return sorted([*known.values(), *left_out], key=_by_path)


def _but(signatures: dict[Found, list], known: Mapping[Found, ScanReport]) -> dict[Found, list]:
    return {scan: signature for scan, signature in signatures.items() if scan not in known}


def is_reported(folder: Path) -> bool:
    return all((folder / name).exists() for name in (JSON_REPORT, CSV_REPORT))


@garbage_collection_paused()
def _kept_lines(signatures: dict[Found, list], folder: Path) -> dict[Found, ScanReport]:
    """The lines of the scans that have not changed since."""
    lines = {scan: kept_line(scan, signature, folder) for scan, signature in signatures.items()}
    return {scan: line for scan, line in lines.items() if line is not None}


def _inspect_all(
    todo: Sequence[tuple[Found, list]], folder: Path, num_processes: int, in_hu: bool
) -> dict[Found, str]:
    """Inspect scans with these signatures and keep their lines. {scan: reason} of those that
    failed, which are not kept: with more memory, or fewer workers, the next run may do better.
    """
    failed = {}
    work = partial(_inspect_and_keep, folder=folder, in_hu=in_hu)
    with closing(parallel_map(work, todo, num_processes, "survey")) as results:
        for (scan, _), result in results:
            if isinstance(result, Failed):
                failed[scan] = result.unless_no_room()
    return failed


def _own_first(items: Sequence, part_id: int, num_parts: int) -> list:
    others = [item for number, item in enumerate(items) if number % num_parts != part_id]
    return [*items[part_id::num_parts], *others]


def _signatures(
    scans: Sequence[Found], folder: Path, num_processes: int, own_first: Callable, rules: list
) -> tuple[dict[Found, list], dict[Found, str]]:
    """What changes when a scan changes, for each; DICOM folders become their series. And what
    failed already.
    """
    signatures, failed = _file_signatures(scans)
    dicom = own_first([scan for scan in scans if scan.series == ALL_SERIES])
    signatures |= _dicom_signatures(dicom, folder, num_processes, failed)
    return _with_rules(signatures, rules), failed


@garbage_collection_paused()
def _with_rules(signatures: Mapping[Found, list], rules: list) -> dict[Found, list]:
    """Each signature behind the rules, so that a line which was kept by others does not match."""
    return {scan: [*rules, *signature] for scan, signature in signatures.items()}


@garbage_collection_paused()
def _file_signatures(scans: Sequence[Found]) -> tuple[dict[Found, list], dict[Found, str]]:
    """The same, of all scans but folders of DICOM."""
    signatures, failed = {}, {}
    for scan in scans:
        if scan.series in NOT_READ:
            failed[scan] = not_read(scan)
        elif scan.series != ALL_SERIES:
            try:
                signatures[scan] = size_and_time(scan.path)
            except OSError as error:
                failed[scan] = f"cannot be read: {error.strerror}"
    return signatures, failed


def _dicom_signatures(
    folders: Sequence[Found], folder: Path, num_processes: int, failed: dict[Found, str]
) -> dict[Found, list]:
    """Of each series in `folders`, scans that stand for all series of a folder. Those that cannot
    be read are added to `failed`.
    """
    signatures = {}
    work = partial(_series_signatures, folder=folder)
    with closing(parallel_map(work, folders, num_processes, "DICOM headers")) as results:
        for scan, found in results:
            if isinstance(found, Failed):
                failed[scan] = found.unless_no_room()
            else:
                signatures |= found
    return signatures


def _series_signatures(scan: Found, folder: Path) -> dict[Found, list]:
    """The signature of each series in the folder of a `scan` that stands for all of them."""
    found = series_in(scan.path, cache=folder)
    return {Found(scan.path, uid): series.signature(scan.path) for uid, series in found.items()}


def _inspect_and_keep(item: tuple[Found, list], folder: Path, in_hu: bool) -> None:
    scan, signature = item
    if not kept_line(scan, signature, folder):  # another part may have done it meanwhile
        keep_line(scan, signature, folder, inspect_scan(scan, folder, in_hu))


def inspect_scan(found: Found, cache: Path | None = None, in_hu: bool = True) -> ScanReport:
    """Read one scan and return its line: its properties, or why it is left out.

    Raises PassingError and MemoryError when that cannot be known now.
    """
    line = ScanReport(found.path, found.series, False)
    try:
        check_stored(found, in_hu, cache)
        scan = read_found(found, cache)
        line = replace(
            line, shape=scan.voxels.shape, spacing=scan.spacing, orientation=scan.orientation
        )
        (check_hu if in_hu else check_values)(scan.voxels)
    except UnusableScanError as refusal:
        return replace(line, reason=str(refusal))
    return _with_statistics(replace(line, kept=True, note=scan.note), scan.voxels, in_hu)


def _with_statistics(line: ScanReport, voxels: np.ndarray, in_hu: bool) -> ScanReport:
    histogram = pack_histogram(body_histogram(voxels)) if in_hu else ""
    return replace(line, percentiles=_percentiles(voxels), histogram=histogram)


def _percentiles(voxels: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in np.percentile(voxels, PERCENTILES))


def body_histogram(hu: np.ndarray) -> np.ndarray:
    """Number of body voxels at each whole HU from BODY_HU to 3000, which higher ones count as."""
    low, high = HISTOGRAM
    body = np.rint(hu[hu > BODY_HU]).clip(low, high).astype(np.int64)
    return np.bincount(body - low, minlength=high - low + 1)


def nothing_usable(lines: Sequence[ScanReport], sources: Sequence) -> ValueError:
    """The error for a collection without a usable scan: what was searched for, where, and what was
    found.
    """
    where = ", ".join(map(str, sources))
    if not lines:
        return ValueError(
            f"no scans in {where}: searched for {LOOKED_FOR} at any depth and found none"
        )
    return ValueError(
        f"none of the {len(lines)} scans found in {where} can be used; searched for {LOOKED_FOR}. "
        f"Left out:\n{_left_out_text(lines[:10])}"
    )


def _left_out_text(lines: Sequence[ScanReport]) -> str:
    return "\n".join(f"  {line.path}: {line.reason}" for line in lines)
