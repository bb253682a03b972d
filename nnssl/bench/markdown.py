"""Tables in Markdown, in which the benchmarks report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def header(columns: Sequence[str]) -> str:
    """The two lines that a table begins with."""
    return f"{row(columns)}\n|{'---|' * len(columns)}"


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def pipe_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The lines of a whole table, without a line break at the end."""
    return "\n".join([header(columns), *map(row, rows)])
