"""The rows of `results.jsonl`: checked, sorted, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from itertools import chain, starmap
from numbers import Real
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

from nnssl.study.rows import KINDS, Row

WORDS = {
    str: "a string",
    int: "an integer",
    Real: "a number",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
FRACTIONS = ("dice", "surface_dice")
ROUNDING = 1e-6  # of a quotient of sums


class ResultsError(ValueError):
    """The file is not a study's results; the message says which line and what it lacks."""


def parse_rows(rows: Iterable[Mapping]) -> list[Row]:
    """Each row once, sorted by its key. Raises ResultsError for what is no row of a study."""
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
    _require_types(kind, content, what)
    _require_fractions(content, what)
    return kind.from_json(content)


def _kind_of(content: Mapping, what: str) -> type[Row]:
    if not isinstance(content, dict) or content.get("kind") not in KINDS:
        got = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise ResultsError(f"{what} has kind {got!r}; known: {', '.join(KINDS)}")
    return KINDS[content["kind"]]


def _require_fields(kind: type[Row], content: Mapping, what: str) -> None:
    if missing := kind.lacking(content):
        raise ResultsError(f"{what} lacks {', '.join(missing)}")


def _require_types(kind: type[Row], content: Mapping, what: str) -> None:
    for name, allowed in _types(kind).items():
        value = content.get(name)
        if name in content and (isinstance(value, bool) or not isinstance(value, allowed)):
            words = " or ".join(WORDS[each] for each in allowed)
            raise ResultsError(f"{what} has {name}: {repr(value)[:60]}; allowed: {words}")


@cache
def _types(kind: type[Row]) -> dict[str, tuple[type, ...]]:
    """By field, the classes that its value may have as JSON gives it."""
    hints = get_type_hints(kind)
    return {field.name: _classes(hints[field.name]) for field in fields(kind)}


def _classes(hint: object) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(chain.from_iterable(map(_classes, get_args(hint))))
    plain = get_origin(hint) or hint
    if plain is float:
        return (Real,)
    return (plain,) if isinstance(plain, type) else ()


def _require_fractions(content: Mapping, what: str) -> None:
    for name in FRACTIONS:
        value = content.get(name)
        if value is not None and (value < -ROUNDING or value > 1 + ROUNDING):
            raise ResultsError(f"{what} has {name}: {value}; allowed: 0 to 1, or null")
