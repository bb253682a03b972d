"""A table, as CSV and for the page. Cells are words, numbers, intervals, or None for what there is
not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isnan
from pathlib import Path

from nnssl import files
from nnssl.study.report.statistics import Interval

Cell = str | int | float | Interval | None


@dataclass(frozen=True)
class Table:
    """name: of the CSV file, empty where there is none. note: how to read it. formats: of numbers,
    by column; others have three decimals.
    """

    name: str
    title: str
    note: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    formats: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """`<name>.csv` in `folder`; an interval takes three columns."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        wide = [
            any(isinstance(row[place], Interval) for row in self.rows)
            for place in range(len(self.columns))
        ]
        writer.writerow(
            name for column, w in zip(self.columns, wide, strict=True) for name in _names(column, w)
        )
        for row in self.rows:
            writer.writerow(
                value for cell, w in zip(row, wide, strict=True) for value in _values(cell, w)
            )
        path = folder / f"{self.name}.csv"
        with files.atomic(path) as temporary:
            temporary.write_text(out.getvalue(), encoding="utf-8")
        return path

    def text(self, column: str, cell: Cell) -> str:
        """A cell as the page shows it."""
        form = self.formats.get(column, ".3f")
        if isinstance(cell, Interval):
            if isnan(cell.mean):
                return "-"
            return f"{cell.mean:{form}} [{cell.low:{form}}, {cell.high:{form}}]"
        if isinstance(cell, float):
            return "-" if isnan(cell) else "not reached" if cell == inf else f"{cell:{form}}"
        return "-" if cell is None else str(cell)


def sort_value(cell: Cell) -> float | None:
    """What a column is sorted by where its cell is a number; NaN for a number that there is not."""
    if isinstance(cell, Interval):
        return cell.mean
    if isinstance(cell, int | float):
        return float(cell)
    return None


def _names(column: str, wide: bool) -> list[str]:
    return [column, f"{column} low", f"{column} high"] if wide else [column]


def _values(cell: Cell, wide: bool) -> list:
    numbers = [cell.mean, cell.low, cell.high] if isinstance(cell, Interval) else [cell, None, None]
    return [_plain(number) for number in (numbers if wide else numbers[:1])]


def _plain(cell: str | int | float | None) -> str | int | float | None:
    """Numbers with six digits, nothing for NaN."""
    if isinstance(cell, float):
        return "" if isnan(cell) else f"{cell:.6g}"
    return cell
