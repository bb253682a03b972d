"""Each option once: a dataclass field holds its default, help, flag, type and what it may be.

    @dataclass(frozen=True)
    class Request:
        steps: int | None = option(None, "optimiser steps", check=at_least(1))

add              the flags of a command
build_dataclass  the dataclass, from what was typed
words            what to type for the values of a study's description
parse_words      such words, as the command reads them; `fields_from`: to fields
require          an error for a value that may not be

The type of a flag is that of the field: `int | None` reads a number, `tuple[int, ...]` one or more
of them, `bool` is a switch that turns the default around.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from math import inf
from types import NoneType, UnionType
from typing import Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

KEY = "option"  # of a field's metadata
T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """What a value may be: in words that follow "must be", and as a test."""

    allowed: str
    passes: Callable[..., bool]


ANY = Check("anything", lambda _: True)


A_SIZE = Check(
    "three numbers Z Y X, or two Y X for 2d, of at least 1 voxel each",
    lambda size: len(size) in (2, 3) and min(size) >= 1,
)


def at_least(least: float) -> Check:
    return Check(f"at least {least}", lambda value: least <= value < inf)


def above(bound: float) -> Check:
    return Check(f"above {bound}", lambda value: bound < value < inf)


@dataclass(frozen=True)
class Option:
    """What `option` declares for a field, and what the field itself gives: name, default, kind.

    help:    `%(default)s` in it is the default; "; default: ..." says one that is derived.
    flag:    by default the name with dashes, and --no-NAME for what is on; "NAME" without a dash:
             a positional argument; None: not on the command line.
    group:   the title under which this option and those after it stand; "": none.
    read:    a word to a value, in place of the field's type; raises ValueError or
             argparse.ArgumentTypeError. In a study's description: `nnssl.study.design.values`.
    join:    the values of several words to the field's value.
    check:   what it may be (`require`); the value None always passes.
    choices, metavar, nargs, const, required: as argparse has them.
    """

    help: str | None
    flag: str | None = ""
    group: str | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: int | str | None = None
    const: object = None
    choices: Sequence[object] | None = None
    read: Callable[..., object] | None = None
    join: Callable[[list], object] = tuple
    check: Check = ANY
    required: bool | None = None
    name: str = ""
    default: object = None
    kind: object = str

    @property
    def is_flag(self) -> bool:
        return bool(self.flag) and self.flag.startswith("-")

    @property
    def key(self) -> str:
        """What a study's description calls it: the flag without dashes, as in Python."""
        if self.flag is None or self.default is True:
            return self.name
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def meaning(self) -> str | None:
        """The help, its default filled in."""
        value = self.default
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return self.help and self.help.replace("%(default)s", shown)

    def value(self, typed: object) -> object:
        """The field's value: several words are a tuple, or what `join` makes of them."""
        return self.join(typed) if isinstance(typed, list) else typed

    def words(self, value: object) -> list[str]:
        """What to type for a value: [] where nothing has to be typed. Raises ValueError for a
        switch that is neither true nor false.
        """
        if self.kind is bool:
            self._require_switch(value)
        flag = str(self.flag)
        if self.default is True:
            return [flag] if value is False else []
        if value is None or value is False:
            return []
        if value is True:
            return [flag]
        return [flag, *map(str, value if isinstance(value, (list, tuple)) else [value])]

    def _require_switch(self, value: object) -> None:
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{self.key} must be true or false, got {value!r}")


def option(
    default: object = MISSING,
    help: str | None = None,
    *,
    factory: Callable[[], object] | None = None,
    **how: object,
) -> T:  # pyright: ignore[reportInvalidTypeVarUse]  # of the type that the field is said to be
    """A dataclass field that is an option; `factory` computes a default, `how`: of `Option`."""
    stored = {KEY: replace(Option(help), **how)}
    if factory is not None:
        return cast("T", field(default_factory=factory, metadata=stored))
    return cast("T", field(default=default, metadata=stored))


def options_of(cls: type, plain: bool = False) -> list[Option]:
    """The options of a dataclass, in the order of its fields; `plain`: its other fields as well."""
    hints = get_type_hints(cls)
    return [
        _of_field(each, hints[each.name]) for each in fields(cls) if plain or KEY in each.metadata
    ]


def _of_field(each: Field, hint: object) -> Option:
    stored: Option = each.metadata.get(KEY, Option(None))
    default = each.default if each.default_factory is MISSING else each.default_factory()
    kind, words = _kind(hint)
    return replace(
        stored,
        name=each.name,
        default=default,
        kind=kind,
        flag=_flag(each.name, default) if stored.flag == "" else stored.flag,
        nargs=stored.nargs or _named_words(stored) or words,
        required=default is MISSING if stored.required is None else stored.required,
    )


def _named_words(stored: Option) -> int:
    """How many words the help names one by one."""
    return len(stored.metavar) if isinstance(stored.metavar, tuple) else 0


def _flag(name: str, default: object) -> str:
    """What is on by default is turned off: --no-NAME."""
    return f"--{'no-' if default is True else ''}{name.replace('_', '-')}"


def add(parser: argparse.ArgumentParser, cls: type, unset: bool = False) -> None:
    """The options of a dataclass as flags of `parser`.

    unset: their default is None, for a command that has to know what was typed.
    """
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    title = ""
    for each in options_of(cls):
        if each.flag is None:
            continue
        title = title if each.group is None else each.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        args = _for_argparse(each)
        if not unset and each.default is not MISSING:
            args["default"] = each.default
        groups[title].add_argument(each.flag if each.is_flag else each.name, **args)


def _for_argparse(each: Option) -> dict:
    """The keyword arguments of `add_argument`, without the default."""
    args: dict[str, object] = {"help": each.meaning}
    if each.is_flag:
        args |= {"dest": each.name, "required": bool(each.required)}
    if each.kind is bool:
        action = "store_false" if each.default is True else "store_true"
        return args | {"action": action, "default": None}
    if each.is_flag and each.nargs in ("+", "*"):
        args["action"] = _Extend
    return args | {key: value for key, value in _of_words(each).items() if value is not None}


class _Extend(argparse.Action):
    """A flag of several words that is repeated adds to them: `-i A -i B` is `-i A B`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, self.default)
        typed = [] if before is self.default else before
        setattr(namespace, self.dest, [*typed, *cast("list", values)])


def _of_words(each: Option) -> dict[str, object]:
    """How the words of what is no switch are read and shown; None: as argparse does."""
    return {
        "type": each.read or (None if each.kind is str else each.kind),
        "nargs": each.nargs,
        "const": each.const,
        "choices": each.choices,
        "metavar": each.metavar,
    }


def values_of(cls: type, args: argparse.Namespace) -> dict:
    """The fields of `cls` in what was typed."""
    typed = vars(args)
    return {o.name: o.value(typed[o.name]) for o in options_of(cls) if o.name in typed}


def build_dataclass(cls: type[T], args: argparse.Namespace, **more: object) -> T:
    """The dataclass from what was typed, and `more`; ValueError, as the dataclass raises it."""
    return cls(**values_of(cls, args), **more)


def words(values: Mapping[str, object], *classes: type) -> list[str]:
    """What to type for `values`, by `Option.key`: {"batch_size": 2, "crop": [8, 8], "fp32": True}
    is --batch-size 2 --crop 8 8 --fp32. None, and False for a switch that is off, add nothing.

    A key that no class knows becomes a flag all the same, for the command to refuse. Raises
    ValueError for a switch that is neither true nor false.
    """
    known = _flags(*classes)
    typed: list[str] = []
    turned_off: list[str] = []  # last: plans of earlier studies are known by their command
    for key, value in values.items():
        each = known.get(key, Option(None, flag=f"--{str(key).replace('_', '-')}"))
        (turned_off if each.default is True else typed).extend(each.words(value))
    return typed + turned_off


def _flags(*classes: type) -> dict[str, Option]:
    """By `Option.key`; positional arguments are none."""
    return {each.key: each for cls in classes for each in options_of(cls) if each.is_flag}


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_words(typed: Sequence[str], *classes: type, unset: bool = False) -> argparse.Namespace:
    """What the options of `classes` become when `typed`; ValueError with argparse's own message."""
    parser = _Strict(add_help=False)
    for cls in classes:
        add(parser, cls, unset)
    return parser.parse_args(typed)


def fields_from(values: Mapping[str, object], cls: type) -> dict:
    """Fields from the values of a description, as the command reads them; None: not given."""
    return values_of(cls, parse_words(words(values, cls), cls, unset=True))


def wrong(config: object, cls: type | None = None) -> dict[str, Option]:
    """What has a forbidden value in `config`, by the options of `cls` or of its own class."""
    found = {}
    for each in options_of(cls or type(config)):
        value = getattr(config, each.name, None)
        if value is not None and not each.check.passes(value):
            found[each.name] = each
    return found


def require(config: object, cls: type | None = None) -> None:
    """Raises ValueError for the first of `wrong`: what it must be, and what was got."""
    for name, each in wrong(config, cls).items():
        raise ValueError(f"{name} must be {each.check.allowed}, got {getattr(config, name)!r}")


def _kind(hint: object) -> tuple[object, int | str | None]:
    """The type of one word, and how many words: of `tuple[float, float] | None` float and 2."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _kind(next(part for part in inner if part is not NoneType))
    if origin is Literal:
        return type(inner[0]), None
    if origin is None:
        return hint, None
    is_exact = origin is tuple and Ellipsis not in inner
    return _kind(inner[0])[0], len(inner) if is_exact else "+"
