"""Problems of a labelled dataset that break a training or teach it wrong values, for `nnssl_plan`
and the doctor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nnssl import files, weights
from nnssl.finetune.architecture import BY_INTENSITIES, INFO, PLANNED, intensities_of
from nnssl.types import RAW

FOLDS = 5  # nnU-Net's own
SPLITS, DATASET = "splits_final.json", "dataset.json"
# HU: the foreground of any CT spans more, that of images scaled to 0..1 does not
LEAST_RANGE = 10.0
GREY = 255.0  # the last grey value of 8 bits


class Caution(NamedTuple):
    says: str
    remedy: str  # the line to type


def cautions(folder: Path, plans: Mapping) -> list[Caution]:
    """What is wrong with a dataset's preprocessed `folder`, for a training by `plans`."""
    return [
        *_too_few_cases(folder, plans),
        *_values_that_are_no_hu(folder, plans),
        *_encoder_of_ct(folder, plans),
    ]


def fold_to_train(folder: Path) -> str:
    """The fold to name in `nnUNetv2_train`: the first, or all where nnU-Net could make no folds."""
    return "all" if _cases_without_folds(folder) else "0"


def training_command(plans: Mapping, dataset: str | int, fold: str) -> str:
    """The line to type, for the first configuration that the checkpoint fits; where there is none,
    the first, without the checkpoint.
    """
    names, fits = list(plans["configurations"]), fitting_configurations(plans)
    possible = fits or names
    first = "3d_fullres" if "3d_fullres" in possible else possible[0]
    trainer = "SwinSSLTrainer" if INFO in plans and fits else "SwinScratchTrainer"
    name = plans.get("plans_name", "NAME")
    return f"nnUNetv2_train {dataset} {first} {fold} -tr {trainer} -p {name}"


def fitting_configurations(plans: Mapping) -> list[str]:
    """Those that the checkpoint fits, as `nnssl_plan` recorded; all where there is no checkpoint,
    or no record.
    """
    names = list(plans["configurations"])
    if INFO not in plans:
        return names
    recorded = plans.get(PLANNED, {}).get("checkpoint_fits", names)
    return [name for name in recorded if name in names]


def read_dataset(folder: Path) -> dict:
    """The dataset.json of a dataset's preprocessed `folder`, or else of its raw one; empty where
    there is none.
    """
    raw = Path(os.environ.get(RAW, ""), folder.name)
    found = [path for path in (folder / DATASET, raw / DATASET) if path.is_file()]
    return files.read_json(found[0]) if found else {}


def _cases_without_folds(folder: Path) -> int:
    """How many labelled cases there are, where these are too few for nnU-Net's folds; else 0."""
    if (folder / SPLITS).is_file():
        return 0
    count = read_dataset(folder).get("numTraining", FOLDS)
    return count if count < FOLDS else 0


def _too_few_cases(folder: Path, plans: Mapping) -> list[Caution]:
    if not (count := _cases_without_folds(folder)):
        return []
    return [
        Caution(
            f"{count} labelled case(s): nnU-Net's {FOLDS} folds need {FOLDS} of them, and folds 0 "
            f"to {FOLDS - 1} fail. Train on all cases, or put folds of your own into "
            f"{folder / SPLITS}, a list of "
            '{"train": [CASES], "val": [CASES]}',
            training_command(plans, folder.name, "all"),
        )
    ]


def _values_that_are_no_hu(folder: Path, plans: Mapping) -> list[Caution]:
    properties = intensities_of(plans)
    remedy = f"nnUNetv2_plan_and_preprocess -d {folder.name} --clean"
    return [
        Caution(_says_no_hu(channel, properties[channel], what), remedy)
        for channel in sorted(_ct_channels(plans) & properties.keys())
        if (what := _no_hu(properties[channel]))
    ]


def _encoder_of_ct(folder: Path, plans: Mapping) -> list[Caution]:
    """For a checkpoint of the user's; `weights.about` says it of the released ones."""
    info = plans.get(INFO)
    if not isinstance(info, dict) or not info.get("hu"):  # the doctor says what is wrong with it
        return []
    if _ct_channels(plans) or weights.of_hash(str(info.get("sha256"))):
        return []
    crop = info.get("pt_used_patchsize")
    other = weights.default(len(crop) if isinstance(crop, list) else 3, is_ct=False)
    return [
        Caution(
            "no channel of this dataset is CT, but the checkpoint was pretrained on CT in HU. On "
            "MRI such encoders were level with a random start or behind it (documentation/mri.md). "
            "Pretrain with --no-hu on scans of this modality, or start from natural images",
            f"nnssl_plan -d {folder.name} -c {other.name} --name NAME",
        )
    ]


def _says_no_hu(channel: str, values: Mapping, what: str) -> str:
    return (
        f"channel {channel} calls itself CT, but its labelled voxels are from "
        f"{values['min']:g} to {values['max']:g}: {what}, no Hounsfield units, and the "
        "map to the pretraining's HU is of no use. Put the HU back into the images, or "
        'call the channel otherwise ("channel_names" in dataset.json), and plan again; then repeat '
        "nnssl_plan, for plans that it has made"
    )


def _ct_channels(plans: Mapping) -> set[str]:
    """The numbers of the channels that some configuration normalises as CT."""
    schemes = [c.get("normalization_schemes", ()) for c in plans["configurations"].values()]
    numbered = [pair for own in schemes for pair in enumerate(own)]
    return {str(channel) for channel, scheme in numbered if scheme == BY_INTENSITIES}


def _no_hu(values: Mapping) -> str | None:
    low, high = values.get("min"), values.get("max")
    if low is None or high is None:
        return None
    if values.get("percentile_99_5", high) - values.get("percentile_00_5", low) < LEAST_RANGE:
        return "scaled"
    return "grey values of 8 bits" if low >= 0 and high <= GREY else None
