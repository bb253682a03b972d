"""A field of a dataclass is a flag, a Python argument and a word of a description."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from nnssl import options
from nnssl.options import above, at_least, option
from nnssl.plans.plans_request import PlansRequest as PlanRequest
from nnssl.recipe import Recipe
from nnssl.train.pretrain_options import CommandOptions, Options
from nnssl.train.run_config import RunConfig

REFERENCE = Path(__file__).resolve().parents[1] / "documentation" / "nnunet_reference.md"


def upper(word: str) -> str:
    return word.upper()


@dataclass(frozen=True)
class Baking:
    cake: str = option(help="which", flag="CAKE", metavar="CAKE")
    eggs: int = option(3, "default: %(default)s", flag="-e", check=at_least(1), group="inside")
    sugar_spoons: float | None = option(None, metavar="N", check=above(0))
    tins: Sequence[Path] = option(())
    size: tuple[float, ...] | None = option(None, metavar=("Z", "Y", "X"))
    pair: tuple[int, int] | None = option(None)
    icing: str = option("PLAIN", read=upper, choices=("PLAIN", "PINK"), flag="--icing-of")
    fan: bool = option(True, "no moving air", group="oven")
    grill: bool = option(False)
    minutes: int = option(factory=lambda: 40, help="default: %(default)s")
    shelf: int = option(2, flag=None)
    mode: Literal["slow", "fast"] | None = option(None)
    notes: str = "no option"

    def __post_init__(self) -> None:
        options.require(self)


@dataclass(frozen=True)
class Command(Baking):
    quiet: bool = option(False, group="")
    candles: int = option(0, group="inside")


def typed(line: str, cls: type = Baking, **more: Any) -> Any:
    return options.build_dataclass(cls, options.parse_words(line.split(), cls), **more)


def test_the_command_and_python_have_the_same_defaults_and_types():
    assert typed("plum") == Baking("plum")
    said = typed(
        "plum -e 4 --sugar-spoons 1.5 --tins a b/c --size 1 2 3 --pair 4 5 --icing-of pink "
        "--no-fan --grill --minutes 9"
    )
    assert said == Baking(
        "plum", 4, 1.5, (Path("a"), Path("b/c")), (1.0, 2.0, 3.0), (4, 5), "PINK", False, True, 9
    )
    assert typed("plum --mode fast", notes="x") == Baking("plum", mode="fast", notes="x")
    with pytest.raises(FrozenInstanceError):
        said.eggs = 5


def test_a_flag_of_several_words_may_be_repeated():
    assert typed("plum --tins a b --tins c").tins == (Path("a"), Path("b"), Path("c"))
    assert typed("plum --size 1 2 3 --size 4 5 6").size == (4.0, 5.0, 6.0)  # as many as there are
    assert typed("plum").tins == Baking("plum").tins
    for unset in (False, True):
        given = options.parse_words(["plum", "--tins", "a", "--tins", "b"], Command, unset=unset)
        assert given.tins == [Path("a"), Path("b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: CAKE"),
        ("plum -e many", "argument -e: invalid int value: 'many'"),
        ("plum --size 1 2", "argument --size: expected 3 arguments"),
        ("plum --icing-of blue", "argument --icing-of: invalid choice: 'BLUE'"),
        ("plum --shelf 3", "unrecognized arguments: --shelf 3"),
        ("plum -e 0", "eggs must be at least 1, got 0"),
        ("plum --sugar-spoons nan", "sugar_spoons must be above 0, got nan"),
        ("plum --sugar-spoons inf", "sugar_spoons must be above 0, got inf"),
    ],
)
def test_what_is_wrong_is_said(line, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        typed(line)


def test_help_names_groups_and_defaults_also_where_none_is_set():
    for unset in (False, True):
        parser = argparse.ArgumentParser()
        options.add(parser, Command, unset)
        text = re.sub(r"\s+", " ", parser.format_help())
        assert "inside: -e EGGS default: 3" in text
        assert "oven: --no-fan no moving air" in text
        assert "--minutes MINUTES default: 40" in text
        assert "--size Z Y X" in text
        assert text.index("--candles") < text.index("oven:")  # the group of its title
        assert parser.get_default("eggs") == (None if unset else 3)
    assert vars(options.parse_words(["plum"], Command, unset=True))["fan"] is None


def test_a_description_says_what_would_be_typed():
    said = {
        "e": 4, "sugar_spoons": "1e0", "fan": False, "tins": ["a", "b"], "size": (1, 2, 3),
        "grill": True, "icing_of": "pink", "minutes": None,
    }  # fmt: skip
    line = options.words(said, Baking)
    assert " ".join(line) == (
        "-e 4 --sugar-spoons 1e0 --tins a b --size 1 2 3 --grill --icing-of pink --no-fan"
    )
    assert options.parse_words(["plum", *line], Baking).sugar_spoons == 1.0
    assert options.words({"fan": True, "grill": False, "shelf": 1}, Baking) == ["--shelf", "1"]
    assert options.words({"eggz": 3}, Baking) == ["--eggz", "3"]  # which the command refuses
    for name, value in (("fan", "no"), ("fan", 0), ("grill", 1), ("grill", [True])):
        with pytest.raises(
            ValueError, match=f"{name} must be true or false, got {re.escape(repr(value))}"
        ):
            options.words({name: value}, Baking)


def test_values_are_read_from_a_description_as_the_command_reads_them():
    said = options.fields_from({"epochs": 3, "lr": "1e-3", "mirror": False, "ema": None}, Recipe)
    assert {name: value for name, value in said.items() if value is not None} == {
        "epochs": 3,
        "lr": 1e-3,
        "mirror": False,
    }
    recipe = Recipe.chosen(said | {"iterations": 4})
    assert (recipe.val_iterations, recipe.foreground) == (1, Recipe.foreground)
    with pytest.raises(ValueError, match=r"argument --epochs: invalid int value: '2\.5'"):
        options.fields_from({"epochs": 2.5}, Recipe)


def test_a_run_takes_from_the_options_what_both_know():
    asked = Options("smit", seed=3, accumulate=2, tensorboard=True, steps=9, batch_size=1)
    run = RunConfig.of(asked, steps=5, batch_size=4, workers=0, bf16=True)
    assert run == RunConfig(5, 4, 2, seed=3, workers=0, bf16=True, tensorboard=True)
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0"):
        RunConfig(1, 1, log_every=0)
    with pytest.raises(ValueError, match="save_every must be at least 1, got -2"):
        Options("smit", save_every=-2)


@pytest.mark.parametrize("cls", [CommandOptions, PlanRequest, Recipe])
def test_defaults_may_be_what_the_checks_allow(cls):
    for each in options.options_of(cls):
        assert each.default in (None, MISSING) or each.check.passes(each.default)


def test_the_reference_lists_every_flag_of_nnssl_plan_with_its_default():
    table = {}
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| `(-[\w-]+)[^`]*` \|([^|]*)\|", line):
            table[found[1]] = found[2].strip().strip("`")
    known = [*options.options_of(PlanRequest), *options.options_of(Recipe)]
    flags = {each.flag: each for each in known if each.flag and not each.required}
    assert set(table) == set(flags)
    for flag, each in flags.items():
        if isinstance(each.default, bool):
            assert table[flag] == "off"
        elif isinstance(each.default, (int, float)):
            assert float(table[flag]) == each.default, flag
        elif each.default is not None:
            assert table[flag] == each.default
