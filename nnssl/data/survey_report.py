"""The survey's report: one line per scan, and the files that people read."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.scans import Found
from nnssl.files import atomic, write_json
from nnssl.host_memory import garbage_collection_paused
from nnssl.types import Shape, Spacing

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
JSON_REPORT, CSV_REPORT = "report.json", "report.csv"
# file names need not be valid UTF-8
NAMES: dict = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class ScanReport:
    """One line of the report. `histogram`: of the body voxels in HU, one bin a unit, compressed.

    `orientation`: where x, y and z run, as stored. `note`: what reading changed, of a scan that is
    kept. `state`: what changes when the scan's files change; of the lines that `survey` returns.
    """

    path: str
    series: str
    kept: bool
    reason: str = ""
    shape: Shape = ()
    spacing: Spacing = ()
    percentiles: tuple[float, ...] = ()
    histogram: str = ""
    orientation: str = ""
    note: str = ""
    state: tuple = ()

    @classmethod
    def without_histogram(cls, line: Mapping) -> ScanReport:
        """From its fields as JSON has them. Raises TypeError for others."""
        lists = {name: tuple(line[name]) for name in ("shape", "spacing", "percentiles")}
        fields: dict = {**line, **lists, "histogram": ""}
        return cls(**fields)

    def without(self, *names: str) -> dict:
        """Its other fields, by name."""
        return {name: value for name, value in vars(self).items() if name not in names}

    @property
    def found(self) -> Found:
        return Found(self.path, self.series)


@garbage_collection_paused()
def write_report(lines: Sequence[ScanReport], folder: Path | str, in_hu: bool = True) -> None:
    """`report.json` and `report.csv`: path, kept or left out, why, shape, spacing, percentiles (HU
    for CT) and more.
    """
    names = [f"{'hu' if in_hu else 'value'}_{percent:g}" for percent in PERCENTILES]
    rows = [_survey_row(line, names) for line in lines]
    write_json(Path(folder) / JSON_REPORT, {**_survey_counts(lines), "scans": rows})
    columns = ["path", "series", "kept", "reason", "shape", "spacing"]
    columns += [*names, "orientation", "note"]
    _write_table(Path(folder) / CSV_REPORT, columns, rows)


def _survey_counts(lines: Sequence[ScanReport]) -> dict:
    kept = [line for line in lines if line.kept]
    return {
        "found": len(lines),
        "kept": len(kept),
        "left_out": len(lines) - len(kept),
        "orientations": dict(Counter(line.orientation for line in kept)),
    }


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="", **NAMES) as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(map(_table_cells, rows))


def _table_cells(row: dict) -> Iterable:
    """The cells of a row: shape and spacing in one each, such as 512x512x60."""
    joined = {key: "x".join(map(str, row[key])) for key in ("shape", "spacing")}
    return (row | joined).values()


def _survey_row(line: ScanReport, names: Sequence[str]) -> dict:
    """A line as it is read by people, by the names of the table's columns."""
    percentiles = line.percentiles or [None] * len(names)
    return {
        "path": line.path,
        "series": line.series,
        "kept": line.kept,
        "reason": line.reason,
        "shape": list(line.shape),
        "spacing": [round(mm, 4) for mm in line.spacing],
        **dict(zip(names, percentiles, strict=True)),
        "orientation": line.orientation,
        "note": line.note,
    }
