"""The scans left out of a collection, with reasons and, where they could be read, pictures. No path
of a scan, and so no name of a patient's folder, comes onto the page.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import zip_longest
from pathlib import Path

import numpy as np

from nnssl.data.orientation import Scan
from nnssl.data.plan import case_id
from nnssl.data.scans import NOT_READ, Found, read_found
from nnssl.files import fingerprint
from nnssl.report.thumbnails import Planes, picture
from nnssl.study.report.page import Tile, Tiles
from nnssl.study.report.tables import Cell, Table

SHOWN = 24  # pictures of scans that were left out
BINS = 56
# An absolute path, or a file of some image format.
NAMES = re.compile(
    r"(?<!\w)(?:[A-Za-z]:)?[/\\][^\s,;:()]+"
    r"|[^\s'\"(]+\.(?:dcm|dicom|ima|nii|gz|nrrd|nhdr|mha|mhd|z?raw|img|hdr)\b",
    re.IGNORECASE,
)

# What names a file, and may hold blanks and commas: what the operating system said, data files of a
# header, what is quoted or in brackets and has a slash, and what lies in the scan's own folder.
WHOLE = (
    (re.compile(r"(cannot be read now: .*?) \(.*\)(?=; the next run)", re.DOTALL), r"\1 (…)"),
    (re.compile(r"(data file (?:is )?)(['\"]).*?\2", re.DOTALL), r"\1…"),
    (re.compile(r"(['\"(])[^'\"()]*[/\\][^'\"()]*(?=['\")])"), r"\1…"),
    (re.compile(r"…[/\\][^'\"():;]*"), "…"),
)


def line_id(line: dict) -> str:
    """The case's id of a line of report.json; of a line about a whole folder, its hash."""
    if line["series"] in NOT_READ:
        return f"a folder, {fingerprint([line['path'], line['series']])}"
    return case_id(line["path"], line["series"])


def reason(line: dict) -> str:
    """Why a line was left out, without the file's name and folders."""
    text = line["reason"]
    for name in _identifying_names(Path(line["path"])):
        if len(name) > 1:
            text = text.replace(name, "…")
    for pattern, rest in WHOLE:
        text = pattern.sub(rest, text)
    return NAMES.sub("…", text)


def _identifying_names(path: Path) -> tuple[str, ...]:
    # A folder's bare name may be a word of the reason: scans in a folder "reformat". A name of
    # several words is not.
    of_words = [part for part in path.parts if re.search(r"[\s,]", part)]
    return (str(path), str(path.parent), path.name if path.suffix else "", *of_words)


def kind(line: dict) -> str:
    """Lines of one kind differ in their numbers only."""
    return re.sub(r"-?\d[\d.,]*", "N", reason(line))


def tables(lines: list[dict]) -> list[Table]:
    """How many were left out for each kind of reason, and each of them."""
    each: list[list[Cell]] = [[line_id(line), reason(line)] for line in lines]
    where = "The scan's path is in report.csv, in the row with the same reason."
    scans_table = Table("", "Each scan that was left out", where, ["scan", "reason"], each)
    return [_reasons_table(lines), scans_table]


def _reasons_table(lines: list[dict]) -> Table:
    """How many for each kind, the most frequent first."""
    first = {kind(line): reason(line) for line in reversed(lines)}
    counts = Counter(map(kind, lines))
    rows: list[list[Cell]] = [[first[name], count] for name, count in counts.most_common()]
    note = "Of reasons that differ in their numbers only, the first is shown."
    return Table("", "Reasons", note, ["reason", "scans"], rows)


def tiles(lines: list[dict], folder: Path, shown: int = SHOWN) -> Tiles:
    """Pictures of some, of each kind of reason alike many. Only what the survey could read is read
    again.
    """
    in_turn = _in_turn([line for line in lines if line["shape"]])
    return Tiles([_left_out_tile(line, folder) for line in in_turn[:shown]])


def _in_turn(lines: list[dict]) -> list[dict]:
    """The first of each kind, the second of each, and so on."""
    kinds: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        kinds[kind(line)].append(line)
    by_kind = [kinds[name] for name in sorted(kinds)]
    return [line for round_ in zip_longest(*by_kind) for line in round_ if line is not None]


def _left_out_tile(line: dict, folder: Path) -> Tile:
    name, words = line_id(line), reason(line)
    try:
        scan = read_found(Found(line["path"], line["series"]), folder)
    except (OSError, RuntimeError, ValueError, MemoryError):
        return Tile(name, "no picture: the file cannot be read now", None, words)
    return Tile(name, f"three planes of {name}", _picture(scan), words)


def _picture(scan: Scan) -> bytes:
    planes = Planes.of(scan.voxels.__getitem__, scan.voxels.shape, scan.spacing)
    low, high = planes.limits()
    counts = np.histogram(planes.voxels, BINS, (low, max(high, low + 1e-6)))[0]
    return picture(planes, counts, scan.orientation, (low, high))
