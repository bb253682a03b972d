"""A description's file, its entries and their single values: each of its type, within limits, or
refused.

A reader takes a value as YAML gives it and the `Place` where it stands, and returns the value of a
dataclass's field. Which reader a field has, its `option` says by `read` or `choices`; else its type
does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import address
from nnssl.options import Option
from nnssl.types import FINAL
from nnssl.weights import RELEASED

if TYPE_CHECKING:
    from yaml import MappingNode, ScalarNode

# no "__": nnU-Net and the runs' names join by it
NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
FILE_NAME = re.compile(r"\w[\w.-]*")  # of plans, configurations and trainers: not a path
DATASET = re.compile(r"\d{1,4}|Dataset\d{3,4}_\w[\w.-]*")
MISREAD = {  # by YAML's kind
    "int": re.compile(r"[-+]?0[0-9_]+|.*:.*"),
    "float": re.compile(r".*:.*"),
    "timestamp": re.compile(r".*"),
}
LONGEST_NAME = 64  # a run's name joins four of them, and file systems end at 255
LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 100_000  # in a file, aliases written out
LARGEST_COUNT = 2**32 - 1  # what numpy takes as a seed


class DescriptionError(ValueError):
    """The description is invalid; the message says where, what was given and what is allowed."""


@dataclass(frozen=True)
class Place:
    """Where a value stands: in words for errors, and in the folder that its paths start from."""

    what: str
    folder: Path = Path()

    def __str__(self) -> str:
        return self.what

    def named(self, what: str) -> Place:
        return replace(self, what=what)

    def inside(self, key: str) -> Place:
        return self.named(f"{self.what}: {key}" if self.what else key)


Reader = Callable[[object, Place], object]


def read_yaml(path: Path) -> object:
    """The content of a YAML file. Raises DescriptionError, also where its aliases are endless, a
    key is repeated, or a number or date is not read as it is written.
    """
    import yaml

    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise DescriptionError(f"{path} has {size} bytes; allowed are at most {LARGEST_FILE}")
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        _require_few_values(document, path)
        _require_read_as_written(document, path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path} is not YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path} is not text in UTF-8: {error}") from error
    except DescriptionError:
        raise
    except ValueError as error:
        raise DescriptionError(f"{path} has a value that YAML cannot read: {error}") from error
    except RecursionError:
        raise DescriptionError(
            f"{path} has an alias that refers to itself, or thousands of nested lists"
        ) from None


def _require_few_values(document: object, path: Path) -> None:
    size = _value_count(document, {})
    if size > MOST_VALUES:
        raise DescriptionError(
            f"{path} holds {size:g} values after expanding aliases; allowed are at most "
            f"{MOST_VALUES}"
        )


def _value_count(node: object, known: dict[int, int]) -> int:
    """How many values a node of YAML is, aliases written out; RecursionError for an endless one."""
    if id(node) not in known:
        known[id(node)] = 1 + sum(_value_count(child, known) for child in _children(node))
    return known[id(node)]


def _require_read_as_written(node: object, path: Path) -> None:
    """YAML takes the last of two equal keys, 010 for 8, 1:30 for 90 and 2026-07-01 for a date,
    without a word.

    node: of YAML, with aliases that end.
    """
    import yaml

    if isinstance(node, yaml.ScalarNode):
        _require_plain(node, path)
    if isinstance(node, yaml.MappingNode):
        _require_different_keys(node, path)
    for child in _children(node):
        _require_read_as_written(child, path)


def _require_plain(node: ScalarNode, path: Path) -> None:
    misread = MISREAD.get(node.tag.rpartition(":")[2])
    if misread and misread.fullmatch(node.value):
        raise DescriptionError(
            f"{path}, line {node.start_mark.line + 1}: YAML does not read {node.value} as it is "
            "written; leave out zeros at the front and colons, or put it in quotes"
        )


def _require_different_keys(node: MappingNode, path: Path) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key.value, str) and key.value in seen:
            raise DescriptionError(
                f"{path}, line {key.start_mark.line + 1}: {shown(key.value)} is there twice in one "
                "mapping; leave one of them out"
            )
        seen.add(str(key.value))


def _children(node: object) -> list[object]:
    """The entries of a sequence of YAML, or the keys and values of a mapping."""
    inner = getattr(node, "value", None)
    parts = inner if isinstance(inner, list) else []
    return [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]


def fields(entry: Mapping, known: Mapping[str, Option], at: Place) -> dict:
    """The fields that an entry gives, each as its option reads it; null counts as left out."""
    return {
        key: _field(value, known[key], at.inside(key))
        for key, value in entry.items()
        if value is not None
    }


def _field(value: object, option: Option, at: Place) -> object:
    reader = _reader(option)
    if option.nargs == "+":
        return option.join([reader(one, at) for one in a_list(value, at)])
    return reader(value, at)


def _reader(option: Option) -> Reader:
    if option.choices:
        allowed = tuple(map(str, option.choices))
        return lambda entry, at: one_of(entry, allowed, at)
    return option.read or OF_TYPE[option.kind]


def named_as(rule: str) -> Reader:
    """A reader of names that become part of a file name; `rule` says of what they are names."""
    return lambda entry, at: file_name(entry, f"{at} {rule}")


def mapping(entry: object, at: Place) -> Mapping:
    if not isinstance(entry, Mapping):
        raise DescriptionError(f"{at} must be a mapping of names to values, got {shown(entry)}")
    return entry


def a_dict(entry: object, at: Place) -> dict:
    return dict(mapping(entry, at))


def a_list(entry: object, at: Place) -> list:
    if not isinstance(entry, list) or not entry:
        raise DescriptionError(f"{at} must be a list with at least one entry, got {shown(entry)}")
    return entry


def require_known(entry: Mapping, known: Collection[str], at: Place) -> None:
    if unknown := sorted(set(map(str, entry)) - set(known)):
        raise DescriptionError(
            f"{at}: unknown {', '.join(unknown)[:200]}; known: {', '.join(known)}"
        )


def require_said(entry: Mapping, needed: Iterable[Option], at: Place) -> None:
    absent = [each for each in needed if entry.get(each.name) in (None, "", [])]
    if absent:
        said = " and ".join(f"{each.name} ({each.help})" for each in absent)
        raise DescriptionError(f"{at} must say {said}")


def require_once(what: str, values: list) -> None:
    """Raises DescriptionError where a value occurs twice."""
    seen = set()
    if doubled := sorted({str(value) for value in values if value in seen or seen.add(value)}):
        raise DescriptionError(f"named twice as {what}: {', '.join(doubled[:10])}")


def name(entry: object, at: Place) -> str:
    if not isinstance(entry, str) or not NAME.fullmatch(entry):
        raise DescriptionError(
            f"{at} must consist of letters, digits and single - and _, got {shown(entry)}"
        )
    _require_short(entry, at)
    return entry


def _require_short(name: str, at: Place) -> None:
    if len(name) > LONGEST_NAME:
        raise DescriptionError(
            f"{at} has {len(name)} characters; allowed are at most {LONGEST_NAME}, as it is "
            "part of file names"
        )


def text(entry: object, at: Place) -> str:
    if not isinstance(entry, str) or not entry:
        raise DescriptionError(f"{at} must be a string, got {shown(entry)}")
    return entry


def file_name(entry: object, rule: str) -> str:
    if not isinstance(entry, str) or not FILE_NAME.fullmatch(entry):
        raise DescriptionError(f"{rule}; got {shown(entry)}")
    return entry


def dataset(entry: object, at: Place) -> str:
    number = str(entry) if type(entry) is int else entry
    if not isinstance(number, str) or not DATASET.fullmatch(number):
        raise DescriptionError(
            f"{at} must be the ID or name of an nnU-Net dataset, 501 or Dataset501_Name; got "
            f"{shown(entry)}"
        )
    return number


def one_of(entry: object, allowed: tuple[str, ...], at: Place) -> str:
    if not isinstance(entry, str) or entry not in allowed:
        raise DescriptionError(f"{at} must be one of {', '.join(allowed)}; got {shown(entry)}")
    return entry


def count(entry: object, at: Place) -> int:
    if type(entry) is not int or not 0 <= entry <= LARGEST_COUNT:
        raise DescriptionError(
            f"{at} must be an integer from 0 to {LARGEST_COUNT}, got {shown(entry)}"
        )
    return entry


def positive(entry: object, at: Place) -> float:
    number = _number_or_nan(entry)
    if not 0 < number < inf:
        raise DescriptionError(f"{at} must be a positive number, got {shown(entry)}")
    return number


def _number_or_nan(entry: object) -> float:
    """NaN for what is none."""
    if isinstance(entry, bool):
        return nan
    try:  # YAML reads 1e0 as a word
        return float(entry) if isinstance(entry, str | int | float) else nan
    except (ValueError, OverflowError):
        return nan


def expression(entry: object, at: Place) -> str:
    pattern = text(entry, at)
    try:
        re.compile(pattern)
    except re.error as error:
        raise DescriptionError(f"{at} is not a regular expression: {error}") from None
    return pattern


def shown(entry: object) -> str:
    return repr(entry)[:200]


def path(entry: object, at: Place) -> Path:
    """Relative paths are relative to the description."""
    return (at.folder / Path(text(entry, at)).expanduser()).resolve()


def weights(entry: object, at: Place) -> Path:
    """A path as `path`; or an address (`nnssl.address`), whose file is fetched, or a name."""
    where = text(entry, at)
    if not address.is_address(where):
        there = path(where, at)
        if there.exists() or where not in RELEASED:
            return _file_of_weights(there, at)
    try:
        return address.local(where)
    except address.AddressError as error:
        raise DescriptionError(f"{at}: {error}") from error


def _file_of_weights(there: Path, at: Place) -> Path:
    """The path, or the file in a folder of a pretraining or of `nnssl_convert --hub`."""
    found = address.local(there)
    if found.is_dir():
        raise DescriptionError(
            f"{at}: {found} is a folder without {FINAL} or {address.MODEL}; name a file"
        )
    return found


OF_TYPE: dict[object, Reader] = {
    str: text,
    int: count,
    float: positive,
    Path: path,
    Mapping: a_dict,
}
