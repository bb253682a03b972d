"""A description's options and recipes as the flags of our commands."""

from __future__ import annotations

from collections.abc import Mapping

from nnssl.convert.request import ConvertRequest
from nnssl.options import words
from nnssl.plans.plans_request import PlansRequest
from nnssl.recipe import Recipe
from nnssl.train.pretrain_options import CommandOptions


def flags(options: Mapping) -> list[str]:
    """Flags of nnssl_pretrain or nnssl_convert, which call the same things alike."""
    return words(options, CommandOptions, ConvertRequest)


def recipe_flags(recipe: Mapping) -> list[str]:
    """Flags of nnssl_plan for a recipe."""
    said = {key: value for key, value in recipe.items() if key != "trainer"}
    return words(said, PlansRequest, Recipe)
