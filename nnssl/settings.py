"""Fields of a dataclass from words such as `mask_ratio=0.6`, as `--set` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING
from math import isfinite
from typing import cast

from nnssl.options import Option, options_of


def parse_assignments(words: Sequence[str], cls: type) -> dict:
    """The fields of `cls` that `words` name, each of its field's type, an option or not.

    Raises ValueError for an unknown field, listing those that are known, and for a bad value.
    """
    known = {each.name: each for each in options_of(cls, plain=True)}
    return dict(_setting(word, known) for word in words)


def _setting(word: str, known: dict[str, Option]) -> tuple[str, object]:
    """Name and value of one word."""
    name, _, text = word.partition("=")
    if name not in known or not text:
        raise ValueError(f"cannot set {word!r}; write FIELD=VALUE with one of: {_defaults(known)}")
    try:
        return name, _value(text, known[name])
    except ValueError as error:
        raise ValueError(f"cannot set {word!r}: {error}") from error


def _defaults(known: dict[str, Option]) -> str:
    with_default = [each for each in known.values() if each.default is not MISSING]
    return ", ".join(f"{each.name}={each.default}" for each in with_default)


def _is_true(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _value(text: str, field: Option) -> object:
    if field.kind is bool:
        return _is_true(text)
    kind = cast("type", field.kind)
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not {_in_words(kind)}") from error
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _in_words(kind: type) -> str:
    """What a value of this type is; a type of ours says it in its `WORDS`."""
    known = {int: "a whole number", float: "a number"}
    return known.get(kind) or getattr(kind, "WORDS", f"a {kind.__name__}")
