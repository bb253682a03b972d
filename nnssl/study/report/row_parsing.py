"""The rows of `results.jsonl`: checked, sorted, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import starmap

from nnssl.study.rows import KINDS, Row

LISTS = ("rows", "columns", "values")  # of CKA


class ResultsError(ValueError):
    """The file is not a study's results; the message says which line and what it lacks."""


def parse_rows(rows: Iterable[Mapping]) -> list[Row]:
    """Each row once, sorted by its key."""
    kept = {row.key: row for row in starmap(_parsed, enumerate(rows, start=1))}
    return sorted(kept.values(), key=_numbers_first)


def _numbers_first(row: Row) -> list[tuple[bool, str | int]]:
    """Sorts rows by their keys."""
    return [(isinstance(part, str), part) for part in row.key]


def _parsed(number: int, content: Mapping) -> Row:
    """Raises ResultsError for what is no row of a study."""
    what = f"row {number} of the results"
    kind = _kind_of(content, what)
    what = f"{what}, a {kind.KIND},"
    _require_fields(kind, content, what)
    _require_single_values(kind, content, what)
    return kind.from_json(content)


def _kind_of(content: Mapping, what: str) -> type[Row]:
    if not isinstance(content, dict) or content.get("kind") not in KINDS:
        got = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise ResultsError(f"{what} has kind {got!r}; known: {', '.join(KINDS)}")
    return KINDS[content["kind"]]


def _require_fields(kind: type[Row], content: Mapping, what: str) -> None:
    if missing := [name for name in kind.required() if name not in content]:
        raise ResultsError(f"{what} lacks {', '.join(missing)}")


def _require_single_values(kind: type[Row], content: Mapping, what: str) -> None:
    if odd := [name for name in _single(kind) if isinstance(content[name], (list, dict))]:
        raise ResultsError(f"{what} has a list or mapping for {', '.join(odd)}")


def _single(kind: type[Row]) -> list[str]:
    """The fields that are one value each."""
    return [name for name in kind.required() if name not in LISTS]
