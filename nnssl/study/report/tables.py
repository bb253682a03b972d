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
    from pandas import DataFrame

NO_INTERVAL = Interval(nan, nan, nan)
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

    def with_columns(self, columns: Iterable[str], rows: Iterable[list[Cell]]) -> Table:
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
        return pd.concat([_frame_of(name, cells) for name, cells in named], axis=1)

    def shown(self) -> list[ShownRow]:
        """As the page shows it."""
        forms = [self.formats.get(column, ".3f") for column in self.columns]
        return [ShownRow(_formatted_cells(row, forms), self._is_marked(row)) for row in self.rows]

    def _is_marked(self, row: list[Cell]) -> bool:
        return "differs" in self.columns and row[self.columns.index("differs")] == "yes"


class Shown(NamedTuple):
    """A cell. order: what its column is sorted by where it is a number; "" for a number that there
    is not.
    """

    text: str
    order: str | None


class ShownRow(NamedTuple):
    cells: list[Shown]
    is_marked: bool


def _formatted_cells(row: list[Cell], forms: list[str]) -> list[Shown]:
    cells = zip(row, forms, strict=True)
    return [Shown(text(cell, form), order(cell)) for cell, form in cells]


def text(cell: Cell, form: str) -> str:
    """form: of numbers."""
    if isinstance(cell, Interval):
        return _interval_text(cell, form)
    if isinstance(cell, float):
        return _number_text(cell, form)
    return "-" if cell is None else str(cell)


def _number_text(number: float, form: str) -> str:
    if isnan(number):
        return "-"
    return "not reached" if number == inf else f"{number:{form}}"


def _interval_text(interval: Interval, form: str) -> str:
    if isnan(interval.mean):
        return "-"
    if isnan(interval.low):
        return f"{interval.mean:{form}}"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def order(cell: Cell) -> str | None:
    number = cell.mean if isinstance(cell, Interval) else cell
    if isinstance(number, str):
        return None
    if number is None or isnan(number):
        return ""
    return f"{number:.8g}".replace("inf", "Infinity")


def _frame_of(name: str, cells: list[Cell]) -> DataFrame:
    """A frame of one column; of three where a cell is an interval."""
    import pandas as pd

    if not any(isinstance(cell, Interval) for cell in cells):
        return pd.Series(cells, name=name).to_frame()
    intervals = [cell if isinstance(cell, Interval) else NO_INTERVAL for cell in cells]
    frame = pd.DataFrame(map(vars, intervals), dtype=float)
    return frame.set_axis([name, f"{name} low", f"{name} high"], axis=1)
