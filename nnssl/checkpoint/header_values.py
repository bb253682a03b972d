"""What single values of a header may be, and the error where they are something else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeGuard

MOST_TEXT = 10_000_000  # characters and values of a header, together
DEEPEST = 50  # lists and mappings within each other
MOST_BITS = 1000  # of a whole number: such a number has a float, and can be printed


def require_json(name: str, value: object) -> None:
    """Raises ValueError unless JSON can hold it: `nnssl_inspect --json` and `nnssl_convert --hub`
    write all of a header.

    Counted as JSON would write it: a list that holds another one several times, or itself, takes
    next to nothing in the file.
    """
    todo, size = [(value, 0)], 0
    while todo:
        item, depth = todo.pop()
        size += len(item) if isinstance(item, str) else 1
        if size > MOST_TEXT or depth > DEEPEST:
            raise ValueError(
                f"{name} must have at most {MOST_TEXT} characters, and at most {DEEPEST} lists or "
                "mappings within each other; got more"
            )
        todo += [(inner, depth + 1) for inner in _held_by(item, name)]


def _held_by(item: object, name: str) -> Iterable[object]:
    """What a list or a mapping holds. Raises ValueError for a value that JSON does not have."""
    if isinstance(item, dict) and all(map(_is_single, item)):
        return [*item, *item.values()]
    if isinstance(item, (list, tuple)):
        return item
    if not _is_single(item):
        rule = f"{name} must hold text, finite numbers, lists and mappings, as JSON does"
        raise ValueError(f"{rule}; got {_kind_of_value(item)}")
    return ()


def _is_single(item: object) -> bool:
    return item is None or isinstance(item, (str, bool)) or is_number(item)


def _kind_of_value(item: object) -> str:
    if is_integer(item):
        return f"a whole number of {item.bit_length()} bits"
    return str(item) if isinstance(item, float) else f"a {type(item).__name__}"


def require_valid(holds: bool, rule: str, got: object) -> None:
    if not holds:
        raise unlike(rule, got)


def unlike(rule: str, got: object) -> ValueError:
    return ValueError(f"{rule}; got {str(got)[:200]}")


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is finite, and has a float if it is whole."""
    if is_integer(value):
        return value.bit_length() <= MOST_BITS
    return isinstance(value, float) and abs(value) <= sys.float_info.max


def is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) < 100 and value.isprintable()
