"""Check what a study needs before it starts: variables, files, and data that its arms can use."""

from __future__ import annotations

import os

from nnssl.study.design.description import Arm, Study
from nnssl.study.execution.datasets import Dataset, labelled
from nnssl.study.execution.job_records import StudyError
from nnssl.types import PREPROCESSED, RAW, RESULTS
from nnssl.weights import NAMES

FOLDERS = (RAW, PREPROCESSED, RESULTS)


def check_inputs(study: Study) -> None:
    """Raises StudyError where a variable or a file that the description names is not there."""
    _require_folders()
    _require_files(study)
    for task, arm in study.pairs:
        _require_plans(Dataset(task.dataset), arm)
    for arm in study.arms:
        _require_one_channel(arm)


def _require_folders() -> None:
    if unset := [name for name in FOLDERS if not os.environ.get(name)]:
        raise StudyError(f"folders not set: export {' '.join(f'{name}=...' for name in unset)}")


def _require_files(study: Study) -> None:
    if missing := _missing_files(study):
        raise StudyError(
            "the description names files that do not exist:\n"
            + "\n".join(missing)
            + f"\nweights shipped with this package are given by name: {NAMES}"
        )


def _missing_files(study: Study) -> list[str]:
    return [
        f"  arm {arm.name}: {path}"
        for arm in study.arms
        for path in (arm.checkpoint, arm.weights, arm.train, *arm.scans)
        if path and not path.exists()
    ]


def _require_plans(dataset: Dataset, arm: Arm) -> None:
    """Raises where an arm is trained in another environment, which has not made its plans."""
    if arm.start == "elsewhere" and not (dataset.folder / f"{arm.plans}.json").is_file():
        raise _no_plans(dataset, arm)


def _no_plans(dataset: Dataset, arm: Arm) -> StudyError:
    there = sorted(path.stem for path in dataset.folder.glob("*Plans*.json"))
    return StudyError(
        f"arm {arm.name}: dataset {dataset.given} has no plans {arm.plans}, which are created in "
        f"the environment of its trainer; existing plans: {', '.join(there) or 'none'}. For "
        "checkpoints of MIC-DKFZ's nnssl type, in that environment: "
        f"nnUNetv2_preprocess_like_nnssl -d {dataset.number} -n NAME -pc CHECKPOINT"
    )


def _require_one_channel(arm: Arm) -> None:
    """Where the arm is pretrained with labels."""
    if arm.start != "supervised":
        return
    dataset, _ = labelled(arm)
    channels = Dataset(dataset).about["channel_names"]
    if len(channels) > 1:
        raise StudyError(
            f"arm {arm.name}: dataset {arm.dataset} has {len(channels)} channels, but only a "
            "one-channel encoder can be transferred"
        )
