"""nnU-Net's datasets as a study sees them: names, folders, and what is left to plan and preprocess."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nnssl import files
from nnssl.commands import Command
from nnssl.finetune.architecture import BASE
from nnssl.study.execution.runs import StudyError
from nnssl.types import PREPROCESSED, RAW

# nnU-Net's own plans that a study makes where they are missing, and by which planner
PLANNERS = {
    f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")
}


def full_name(dataset: str) -> str:
    """Dataset501_Name of "501". Raises StudyError."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise StudyError(f"nnU-Net knows no dataset {dataset} in $nnUNet_raw: {error}") from error


def number(dataset: str) -> str:
    """501 of "501" or "Dataset501_Name": some of nnU-Net's commands take nothing else."""
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

    return str(convert_dataset_name_to_id(full_name(dataset)))


def raw(dataset: str) -> dict:
    """The dataset.json that its makers wrote."""
    return files.read_json(Path(os.environ[RAW], full_name(dataset), "dataset.json"))


def preprocessed(dataset: str) -> Path:
    return Path(os.environ[PREPROCESSED], full_name(dataset))


def data_commands(dataset: str, configuration: str, plans_name: str = BASE) -> list[Command]:
    """What is left to plan and preprocess, so far as is known now; none where every training case
    is there. Raises StudyError where plans that nobody here can make are asked for and not there.
    """
    folder, processes = preprocessed(dataset), os.environ.get("nnUNet_def_n_proc", "4")  # noqa: SIM112 nnU-Net's name
    about, named = raw(dataset), ["-d", number(dataset)]
    if not (folder / f"{plans_name}.json").is_file():
        if plans_name in PLANNERS:
            return [["nnUNetv2_plan_experiment", *named, "-pl", PLANNERS[plans_name]]]
        if plans_name != BASE:
            raise StudyError(
                f"dataset {dataset} has no plans {plans_name}; let nnU-Net make them, for example "
                f"with another spacing (mm):\n  nnUNetv2_plan_experiment -d {number(dataset)} "
                f"-overwrite_plans_name {plans_name} -overwrite_target_spacing Z Y X"
            )
        return [
            [
                "nnUNetv2_plan_and_preprocess",
                *named,
                "-c",
                configuration,
                "-npfp",
                processes,
                "-np",
                processes,
            ]
        ]
    plans = files.read_json(folder / f"{plans_name}.json")
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise StudyError(
            f"dataset {dataset} has no configuration {configuration}; its {plans_name} has {known}"
        )
    cases = (folder / identifier(plans, configuration)).glob("*.pkl")
    labels = (folder / "gt_segmentations").glob(f"*{about['file_ending']}")  # copied last
    if min(len(list(cases)), len(list(labels))) < about["numTraining"]:
        return [
            [
                "nnUNetv2_preprocess",
                *named,
                "-plans_name",
                plans_name,
                "-c",
                configuration,
                "-np",
                processes,
            ]
        ]
    return []


def identifier(plans: Mapping, configuration: str) -> str:
    """The name of the folder with a configuration's data."""
    entry = plans["configurations"][configuration]
    return entry.get("data_identifier") or identifier(plans, entry["inherits_from"])
