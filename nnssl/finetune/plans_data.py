"""What preprocessed data depend on, and whether plans are still those of the data they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnssl import files
from nnssl.finetune.plans_file import resolve

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
BY_INTENSITIES = "CTNormalization"  # the scheme that normalises by the dataset's intensities
INTENSITIES = "foreground_intensity_properties_per_channel"
DIGITS = 6  # of a spacing that count


class OtherDataError(ValueError):
    """The plans are not those by which their data were preprocessed."""


def data_settings(plans: Mapping, configuration: Mapping) -> dict:
    """All that decides on the preprocessed data of a resolved configuration, as JSON has it."""
    settings = {key: configuration.get(key) for key in OF_THE_DATA}
    settings["spacing"] = [float(f"{mm:.{DIGITS}g}") for mm in configuration["spacing"]]
    return settings | {
        "transpose_forward": list(plans.get("transpose_forward", ())),
        "intensities": _intensities_used(plans, configuration),
    }


def _intensities_used(plans: Mapping, configuration: Mapping) -> dict:
    """Of the channels that are normalised by them."""
    known = plans.get(INTENSITIES, {})
    schemes = enumerate(configuration["normalization_schemes"])
    used = [str(channel) for channel, scheme in schemes if scheme == BY_INTENSITIES]
    return {channel: known.get(channel) for channel in used}


def require_same_data(folder: Path, plans: dict, name: str) -> None:
    """Raises OtherDataError where configuration `name` uses data of nnU-Net's own plans, and these
    are no longer what they were: the data may have been preprocessed again since.

    folder: of the dataset's plans and data.
    """
    own = resolve(plans, name)
    if not (owner := _owner(folder, own["data_identifier"])) or owner == plans["plans_name"]:
        return
    theirs = files.read_json(folder / f"{owner}.json")
    if not (there := _with_data(theirs, own["data_identifier"])):
        return
    before, now = data_settings(plans, own), data_settings(theirs, there)
    if changed := [key for key in before if before[key] != now[key]]:
        raise OtherDataError(_says_changed(folder, plans["plans_name"], owner, changed))


def _owner(folder: Path, identifier: str) -> str | None:
    """The name of the plans in `folder` that these data are named after."""
    named = [path.stem for path in folder.glob("*.json") if identifier.startswith(f"{path.stem}_")]
    return max(named, key=len, default=None)


def _with_data(plans: dict, identifier: str) -> dict | None:
    """The configuration of these data."""
    resolved = (resolve(plans, name) for name in plans["configurations"])
    return next((one for one in resolved if one["data_identifier"] == identifier), None)


def _says_changed(folder: Path, name: str, owner: str, changed: list[str]) -> str:
    return (
        f"plans {name} use the data of {owner}, which have been planned again since: "
        f"{', '.join(changed)} changed. Make these plans again, by the same nnssl_plan, and "
        f"preprocess what it names; or give {folder / owner}.json back its former content"
    )
