"""The text of JSON files, also of long ones."""

from __future__ import annotations

import json
from collections.abc import Iterator

LONG = 1000  # items, beyond which JSON has a line for each


def parts(value: object) -> Iterator[str]:
    """The text of `value`, in parts. Of a list or dict right in it with more than LONG items, each
    item has a line: ten times faster than with indents. Raises ValueError for NaN.
    """
    if not (isinstance(value, dict) and any(map(_is_long, value.values()))):
        yield json.dumps(value, indent=2, allow_nan=False)
        return
    begin = "{"
    for key, item in value.items():
        if _is_long(item):
            yield f"{begin}\n  {json.dumps({key: None})[1:-5]}"
            yield from _lines(item)
        else:
            text = json.dumps({key: item}, indent=2, allow_nan=False)
            yield f"{begin}\n  {text[4:-2]}"
        begin = ","
    yield "\n}"


def _lines(items: list | tuple | dict) -> Iterator[str]:
    encode = json.JSONEncoder(allow_nan=False).encode
    if isinstance(items, dict):
        begin, end = "{}"
        lines = (encode({key: item})[1:-1] for key, item in items.items())
    else:
        begin, end = "[]"
        lines = map(encode, items)
    for line in lines:
        yield f"{begin}\n    {line}"
        begin = ","
    yield f"\n  {end}"


def _is_long(value: object) -> bool:
    return isinstance(value, list | tuple | dict) and len(value) > LONG
