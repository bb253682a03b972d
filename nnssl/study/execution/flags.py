"""A description's options and recipes as the flags of our commands."""

from __future__ import annotations

from collections.abc import Mapping

# flags of ours that nnU-Net spells so
ONE_DASH = {"np", "num_gpus", "device", "part_id", "num_parts"}


def flags(options: Mapping[str, object]) -> list[str]:
    """{"batch_size": 2, "crop": [8, 8], "fp32": True} as --batch-size 2 --crop 8 8 --fp32; False
    says nothing.
    """
    words = []
    for key, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"-{key}" if key in ONE_DASH else f"--{key.replace('_', '-')}")
        if value is not True:
            words += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
    return words


def recipe_flags(recipe: Mapping[str, object]) -> list[str]:
    """Of nnssl_plan."""
    said = {**recipe, "trainer": None, "mirror": None}
    return flags(said) + (["--no-mirror"] if recipe.get("mirror") is False else [])
