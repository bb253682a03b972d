"""Configurations that a user has added to plans of `nnssl_plan`: they are kept when the plans are
made again, as nnU-Net keeps them. Their data are kept apart from those of other configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from nnssl.finetune.plans_data import (
    OF_THE_DATA,
    ChangedPlansError,
    data_settings,
    is_new_identifier,
    new_identifier,
    require_same_data,
)
from nnssl.finetune.plans_file import resolve

PLANNED_NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")  # nnU-Net's own
BASED_ON = ("inherits_from", "previous_stage")


def keep_own_configurations(plans: dict, before: Mapping) -> None:
    """Add to `plans`, in place, the user's configurations of `before`, the plans of the same name;
    empty where there are none. Raises ValueError where one is based on a configuration that is no
    longer planned.
    """
    new = plans["configurations"]
    own = {
        name: entry
        for name, entry in before.get("configurations", {}).items()
        if name not in (*new, *PLANNED_NAMES)
    }
    for name, entry in own.items():
        _require_bases(name, entry, {**new, **own}, plans["plans_name"])
    new.update(deepcopy(own))  # they are completed there, and `before` stays as it was


def _require_bases(name: str, entry: Mapping, known: Mapping, plans_name: str) -> None:
    bases = (entry.get(key) for key in BASED_ON)
    if missing := [base for base in bases if base is not None and base not in known]:
        raise ValueError(
            f"plans {plans_name} have a configuration {name}, added by hand, which is based on "
            f"{missing[0]}; that is not planned now. The plans stay as they were. Choose another "
            f"--name, or remove {name} from the plans"
        )


def separate_data(plans: dict, folder: Path) -> None:
    """Give data of its own, in place, to each configuration that would otherwise overwrite those of
    another one, or be trained on them: one that states a spacing, for instance, but inherits the
    `data_identifier`.

    folder: of the dataset's plans and data.
    """
    for name, entry in plans["configurations"].items():
        if entry.keys() & {*OF_THE_DATA, "data_identifier"} and _needs_own_data(
            plans, name, folder
        ):
            settings = data_settings(plans, resolve(plans, name))
            entry["data_identifier"] = new_identifier(plans["plans_name"], name, settings)


def _needs_own_data(plans: dict, name: str, folder: Path) -> bool:
    given = resolve(plans, name).get("data_identifier")
    if given is None or is_new_identifier(given, plans["plans_name"], name):
        return True  # the latter of the settings that it had then
    try:
        require_same_data(folder, plans, name)
    except ChangedPlansError:
        return True
    return False
