"""A description's file and its single values: each of its type, within limits, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from nnssl import address
from nnssl.weights import RELEASED

# no "__": nnU-Net and the runs' names join by it
NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
FILE_NAME = re.compile(r"\w[\w.-]*")  # of plans, configurations and trainers: not a path
DATASET = re.compile(r"\d{1,4}|Dataset\d{3,4}_\w[\w.-]*")
LONGEST_NAME = 64  # a run's name joins four of them, and file systems end at 255
LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 100_000  # in a file, aliases written out
LARGEST_COUNT = 2**32 - 1  # what numpy takes as a seed


class DescriptionError(ValueError):
    """The description is wrong; the message says where, what was got and what is allowed."""


def read(path: Path) -> object:
    """The content of a YAML file. Raises DescriptionError, also where its aliases are endless."""
    import yaml

    if path.stat().st_size > LARGEST_FILE:
        raise DescriptionError(
            f"{path} has {path.stat().st_size} bytes; a description has {LARGEST_FILE} at most"
        )
    try:
        text = path.read_text(encoding="utf-8")
        size = _size(yaml.compose(text, Loader=yaml.SafeLoader), {})
        if size > MOST_VALUES:
            raise DescriptionError(
                f"{path} holds {size:g} values, its aliases written out; {MOST_VALUES} at most"
            )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path} is not YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path} is not text in UTF-8: {error}") from error
    except RecursionError:
        raise DescriptionError(
            f"{path} holds an alias within itself, or thousands of nested lists"
        ) from None


def _size(node: object, known: dict[int, int]) -> int:
    """How many values a node of YAML is, aliases written out; RecursionError for an endless one."""
    if id(node) not in known:
        inner = getattr(node, "value", None)
        parts = inner if isinstance(inner, list) else []
        children = [
            child for part in parts for child in (part if isinstance(part, tuple) else (part,))
        ]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def mapping(entry: object, what: str) -> Mapping:
    if not isinstance(entry, Mapping):
        raise DescriptionError(f"{what} must be a mapping of names to values, got {shown(entry)}")
    return entry


def a_list(entry: object, what: str) -> list:
    if not isinstance(entry, list) or not entry:
        raise DescriptionError(f"{what} must be a list with at least one entry, got {shown(entry)}")
    return entry


def require_known(entry: Mapping, known: Collection[str], what: str) -> None:
    if unknown := sorted(set(map(str, entry)) - set(known)):
        raise DescriptionError(
            f"{what}: unknown {', '.join(unknown)[:200]}; known: {', '.join(known)}"
        )


def require_once(what: str, values: list) -> None:
    """Raises DescriptionError where a value is there twice."""
    seen = set()
    if doubled := sorted({str(value) for value in values if value in seen or seen.add(value)}):
        raise DescriptionError(f"named twice as {what}: {', '.join(doubled[:10])}")


def name(entry: object, what: str) -> str:
    if not isinstance(entry, str) or not NAME.fullmatch(entry):
        raise DescriptionError(
            f"{what} is made of letters, digits and single - and _, got {shown(entry)}"
        )
    if len(entry) > LONGEST_NAME:
        raise DescriptionError(
            f"{what} has {len(entry)} letters, {LONGEST_NAME} at most: it is part of file names"
        )
    return entry


def text(entry: object, what: str) -> str:
    if not isinstance(entry, str) or not entry:
        raise DescriptionError(f"{what} is a word, got {shown(entry)}")
    return entry


def file_name(entry: object, what: str) -> str:
    if not isinstance(entry, str) or not FILE_NAME.fullmatch(entry):
        raise DescriptionError(f"{what}; got {shown(entry)}")
    return entry


def dataset(entry: object, what: str) -> str:
    number = str(entry) if isinstance(entry, int) and not isinstance(entry, bool) else entry
    if not isinstance(number, str) or not DATASET.fullmatch(number):
        raise DescriptionError(
            f"{what} is the ID or name of an nnU-Net dataset, 501 or Dataset501_Name; got "
            f"{shown(entry)}"
        )
    return number


def one_of(entry: object, allowed: tuple[str, ...], what: str) -> str:
    if not isinstance(entry, str) or entry not in allowed:
        raise DescriptionError(f"{what} must be one of {', '.join(allowed)}; got {shown(entry)}")
    return entry


def count(entry: object, what: str) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry <= LARGEST_COUNT:
        raise DescriptionError(
            f"{what} is a whole number from 0 to {LARGEST_COUNT}, got {shown(entry)}"
        )
    return entry


def positive(entry: object, what: str) -> float:
    try:  # YAML reads 1e0 as a word
        number = float(entry) if isinstance(entry, str | int | float) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise DescriptionError(f"{what} is a positive number, got {shown(entry)}")
    return number


def expression(entry: object, what: str) -> str:
    pattern = text(entry, what)
    try:
        re.compile(pattern)
    except re.error as error:
        raise DescriptionError(f"{what} is no regular expression: {error}") from None
    return pattern


def shown(entry: object) -> str:
    return repr(entry)[:200]


def path(entry: object, beside: Path, what: str) -> Path:
    """Relative paths are relative to the description."""
    return (beside / Path(text(entry, what)).expanduser()).resolve()


def weights(entry: object, beside: Path, what: str) -> Path:
    """A path as `path`; or an address (`nnssl.address`), whose file is fetched, or a name."""
    where = text(entry, what)
    if not address.is_address(where):
        there = path(where, beside, what)
        if there.exists() or where not in RELEASED:
            return there
    try:
        return address.local(where)
    except address.AddressError as error:
        raise DescriptionError(f"{what}: {error}") from error
