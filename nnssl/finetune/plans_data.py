"""What preprocessed data depend on, and whether plans are still those of the data they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nnssl import files
from nnssl.finetune.architecture import BY_INTENSITIES, are_plans, intensities_of
from nnssl.finetune.plans_file import resolve
from nnssl.recipe import RECIPE

# of a configuration; its other entries are about the network
OF_THE_DATA = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
READER = "image_reader_writer"
DIGITS = 6  # of a spacing that count


class ChangedPlansError(ValueError):
    """The plans are not those by which their data were preprocessed."""


def data_settings(plans: Mapping, configuration: Mapping) -> dict:
    """All that decides on the preprocessed data of a resolved configuration but for the reader of
    images (`with_reader`), as JSON has it.
    """
    settings = {key: configuration.get(key) for key in OF_THE_DATA}
    settings["spacing"] = [float(f"{mm:.{DIGITS}g}") for mm in configuration["spacing"]]
    return settings | {
        "transpose_forward": list(plans.get("transpose_forward", ())),
        "intensities": _intensities_used(plans, configuration),
    }


def with_reader(plans: Mapping, configuration: Mapping) -> dict:
    """`data_settings`, and by which class of nnU-Net's images are read: another one may give other
    axes. Not part of those, by which data and finished studies are known.
    """
    settings = data_settings(plans, configuration)
    return settings | {key: plans[key] for key in (READER,) if key in plans}


def changed_settings(theirs: Mapping, ours: Mapping) -> list[str]:
    """The entries of two `data_settings` that differ in what both say."""
    return [key for key in ours if key in theirs and not _agree(theirs[key], ours[key])]


def _agree(a: object, b: object) -> bool:
    """In all that both say: another version may write more."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_agree(a[key], b[key]) for key in a.keys() & b.keys())
    return a == b


def require_data_of_model(plans: dict, name: str, saved: dict) -> None:
    """Raises ChangedPlansError where configuration `name` of `plans` is of other data than in
    `saved`, the plans in a model's own checkpoint: its network is restored with the intensity map
    of the data that it was trained on.
    """
    theirs, ours = (with_reader(each, resolve(each, name)) for each in (saved, plans))
    if changed := changed_settings(theirs, ours):
        raise ChangedPlansError(_says_other_data(plans["plans_name"], name, changed))


def _says_other_data(plans_name: str, name: str, changed: list[str]) -> str:
    return (
        f"{name} of plans {plans_name} is of other data than this model was trained on: "
        f"{', '.join(changed)} changed. To continue or validate the model, give the plans their "
        "former content and preprocess by them; to train on the new data, choose another name: "
        "nnssl_plan -d DATASET -c CHECKPOINT --name NAME, and train with -p NAME"
    )


def _intensities_used(plans: Mapping, configuration: Mapping) -> dict:
    """The intensities of the channels that are normalised by them."""
    known = intensities_of(plans)
    schemes = enumerate(configuration["normalization_schemes"])
    used = [str(channel) for channel, scheme in schemes if scheme == BY_INTENSITIES]
    return {channel: known.get(channel) for channel in used}


def new_identifier(plans_name: str, name: str, settings: Mapping) -> str:
    """Of the data of configuration `name` alone. It changes with their `data_settings`: plans may
    be made again under the same name.
    """
    return f"{plans_name}_{name}_{files.fingerprint(settings)}"


def is_new_identifier(identifier: str, plans_name: str, name: str) -> bool:
    """Whether `new_identifier` made it for this configuration, of these settings or of others."""
    start = re.escape(f"{plans_name}_{name}_")
    return re.fullmatch(f"{start}[0-9a-f]{{12}}", identifier) is not None


def require_same_data(folder: Path, plans: dict, name: str) -> None:
    """Raises ChangedPlansError where the data of configuration `name` are not, or may not be, those
    that it says: another configuration of these plans, or nnU-Net's own plans, preprocess
    otherwise under the same `data_identifier`.

    folder: of the dataset's plans and data.
    """
    own = resolve(plans, name)
    wanted, identifier = with_reader(plans, own), own["data_identifier"]
    _require_own_data(plans, name, wanted, identifier)
    known = _known_data(folder, identifier)
    changed = {owner: changed_settings(now, wanted) for owner, now in known.items()}
    if changed and all(changed.values()):
        owner = next(iter(changed))
        raise ChangedPlansError(_says_changed(folder, plans["plans_name"], owner, changed[owner]))


def _require_own_data(plans: dict, name: str, wanted: Mapping, identifier: str) -> None:
    """Raises ChangedPlansError where the data belong to another configuration of these plans."""
    theirs = _settings_of_data(plans, identifier) or wanted
    if changed := changed_settings(theirs, wanted):
        owner, plans_name = _owner_of_data(plans, identifier), plans["plans_name"]
        raise ChangedPlansError(
            f"{name} and {owner} of plans {plans_name} are of different data "
            f"({', '.join(changed)}), but under one data_identifier, {identifier}: to preprocess "
            "one overwrites the data of the other. Give data of its own to the first: "
            f'"data_identifier": "{new_identifier(plans_name, name, wanted)}" in its entry; the '
            f"same nnssl_plan does so for plans that it made. Then preprocess {name}, and {owner} "
            f"once more if {name} was preprocessed before"
        )


def _owner_of_data(plans: Mapping, identifier: str) -> str | None:
    """The first configuration that states these data itself; those that inherit follow it."""
    entries = plans["configurations"].items()
    return next((name for name, own in entries if own.get("data_identifier") == identifier), None)


def _known_data(folder: Path, identifier: str) -> dict[str, dict]:
    """The settings of these data in nnU-Net's own plans in `folder`, by the plans' name. Several
    plans may share them, as those of residual encoders do.
    """
    others = ((path.stem, _nnunets_plans(path)) for path in sorted(folder.glob("*.json")))
    found = ((owner, _settings_of_data(plans, identifier)) for owner, plans in others if plans)
    return {owner: settings for owner, settings in found if settings}


def _nnunets_plans(path: Path) -> dict | None:
    """Its content; None where it is none of nnU-Net's own plans, which say nothing of a recipe."""
    try:
        content = files.read_json(path)
    except (OSError, ValueError):
        return None
    return content if are_plans(content) and RECIPE not in content else None


def _settings_of_data(plans: dict, identifier: str) -> dict | None:
    """The settings of these data; None where the plans do not name them, or where nnU-Net itself
    could not preprocess by them: any JSON may lie in the folder, and must not stop a training.
    """
    owner = _owner_of_data(plans, identifier)
    try:
        return with_reader(plans, resolve(plans, owner)) if owner else None
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None


def _says_changed(folder: Path, name: str, owner: str, changed: list[str]) -> str:
    return (
        f"plans {name} use the data of {owner}, which have been planned again since: "
        f"{', '.join(changed)} changed. Make these plans again, by the same nnssl_plan, and "
        f"preprocess what it names; or give {folder / owner}.json back its former content. Plans "
        "moved here from another dataset need a new name, which gives them data of their own: "
        "nnUNetv2_move_plans_between_datasets ... -tp NAME. If these were preprocessed here, the "
        f"data of {owner} have been overwritten: repeat nnUNetv2_preprocess -d {folder.name} "
        f"-plans_name {owner}"
    )
