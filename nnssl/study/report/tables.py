"""A table, as CSV and for the page. Cells are words, numbers, intervals, or None for what there is
not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nnssl import files
from nnssl.study.report.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame, Series

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
    rows: list[list[Cell]] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)

    def of(self, rows: Iterable[list[Cell]]) -> Table:
        return replace(self, rows=list(rows))

    def wider(self, columns: Iterable[str], rows: Iterable[list[Cell]]) -> Table:
        """With more columns on the right."""
        return replace(self.of(rows), columns=[*self.columns, *columns])

    def write(self, folder: Path) -> Path:
        """`<name>.csv` in `folder`; an interval takes three columns, numbers have six digits."""
        path = folder / f"{self.name}.csv"
        with files.atomic(path) as temporary:
            self.frame().to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        return path

    def frame(self) -> DataFrame:
        """The cells as they are, an interval in three columns."""
        import pandas as pd

        columns = [list(cells) for cells in zip(*self.rows, strict=True)]
        named = zip(self.columns, columns, strict=True)
        parts = [part for name, cells in named for part in _columns(name, cells)]
        return pd.concat(parts, axis=1)

    def shown(self) -> list[ShownRow]:
        """As the page shows it."""
        differs = self.columns.index("differs") if "differs" in self.columns else None
        forms = [self.formats.get(column, ".3f") for column in self.columns]
        return [
            ShownRow(
                [
                    Shown(text(cell, form), order(cell))
                    for cell, form in zip(row, forms, strict=True)
                ],
                differs is not None and row[differs] == "yes",
            )
            for row in self.rows
        ]


class Shown(NamedTuple):
    """A cell. order: what its column is sorted by where it is a number; "" for a number that there
    is not.
    """

    text: str
    order: str | None


class ShownRow(NamedTuple):
    cells: list[Shown]
    is_marked: bool


def text(cell: Cell, form: str) -> str:
    """form: of numbers."""
    if isinstance(cell, Interval):
        if isnan(cell.mean):
            return "-"
        return f"{cell.mean:{form}} [{cell.low:{form}}, {cell.high:{form}}]"
    if isinstance(cell, float):
        return "-" if isnan(cell) else "not reached" if cell == inf else f"{cell:{form}}"
    return "-" if cell is None else str(cell)


def order(cell: Cell) -> str | None:
    number = cell.mean if isinstance(cell, Interval) else cell
    if isinstance(number, str):
        return None
    if number is None or isnan(number):
        return ""
    return f"{number:.8g}".replace("inf", "Infinity")


def _columns(name: str, cells: list[Cell]) -> list[Series]:
    """One, or three where a cell is an interval."""
    import pandas as pd

    if not any(isinstance(cell, Interval) for cell in cells):
        return [pd.Series(cells, name=name)]
    none = Interval(nan, nan, nan)
    intervals = [cell if isinstance(cell, Interval) else none for cell in cells]
    ends = {name: "mean", f"{name} low": "low", f"{name} high": "high"}
    return [
        pd.Series([getattr(interval, end) for interval in intervals], name=column, dtype=float)
        for column, end in ends.items()
    ]
