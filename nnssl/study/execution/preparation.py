"""What must be there before a study's runs: nnU-Net's data, pretrained checkpoints, plans, splits.
All by the commands that a user would type, each only where its result is missing or out of date."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

from nnssl import files
from nnssl.commands import Command
from nnssl.finetune.architecture import BASE, RECIPE, Recipe
from nnssl.study.design import splits
from nnssl.study.design.description import BASELINE, OTHERS, Arm, Study, Task, settings
from nnssl.study.execution import runs
from nnssl.study.execution.datasets import (
    data_commands,
    full_name,
    identifier,
    number,
    preprocessed,
    raw,
)
from nnssl.study.execution.runs import StudyError
from nnssl.types import FINAL, PREPROCESSED, RAW, RESULTS

__all__ = ["data_commands", "full_name", "identifier", "number", "preprocessed", "raw"]

FOLDERS = (RAW, PREPROCESSED, RESULTS)
PRESET = "smit"  # of a random start like no pretrained arm
# flags of ours that nnU-Net spells so
ONE_DASH = {"np", "num_gpus", "device", "part_id", "num_parts"}


def check(study: Study) -> None:
    """Raises StudyError where a variable or a file that the description names is not there."""
    if unset := [name for name in FOLDERS if not os.environ.get(name)]:
        raise StudyError(f"folders not set: export {' '.join(f'{name}=...' for name in unset)}")
    named = [
        (arm.name, path)
        for arm in study.arms
        for path in (arm.checkpoint, arm.weights, arm.train, *arm.scans)
        if path
    ]
    if missing := [f"  arm {whose}: {path}" for whose, path in named if not path.exists()]:
        raise StudyError("the description names files that do not exist:\n" + "\n".join(missing))
    for arm in [arm for arm in study.arms if arm.start == "elsewhere"]:
        for task in study.tasks:
            if arm in study.arms_of(task):
                _require_plans(arm, task)
    for arm in [arm for arm in study.arms if arm.start == "supervised"]:
        if len(channels := raw(_labelled(arm)[0])["channel_names"]) > 1:
            raise StudyError(
                f"arm {arm.name}: dataset {arm.dataset} has {len(channels)} channels, and only an "
                "encoder of one can be passed on"
            )


def _require_plans(arm: Arm, task: Task) -> None:
    path = preprocessed(task.dataset) / f"{arm.plans}.json"
    if not path.is_file():
        there = (
            ", ".join(sorted(other.stem for other in path.parent.glob("*Plans*.json"))) or "none"
        )
        raise StudyError(
            f"arm {arm.name}: dataset {task.dataset} has no plans {arm.plans}, which the "
            f"environment of its trainer makes; there are: {there}. For checkpoints of MIC-DKFZ's "
            "nnssl type, in that environment: nnUNetv2_preprocess_like_nnssl -d "
            f"{number(task.dataset)} -n NAME -pc CHECKPOINT"
        )


# nnU-Net's data


def datasets(study: Study) -> list[tuple[str, str, str]]:
    """(dataset, configuration, nnU-Net's plans) of all tasks, of other networks, and of arms
    pretrained with labels; each once.
    """
    wanted = [(task.dataset, task.configuration, task.plans) for task in study.tasks]
    wanted += [
        (task.dataset, task.configuration, arm.plans)
        for task in study.tasks
        for arm in study.arms_of(task)
        if arm.start == "default" and arm.plans
    ]
    wanted += [(*_labelled(arm), BASE) for arm in study.arms if arm.start == "supervised"]
    return list(dict.fromkeys(wanted))


# Pretrained checkpoints


def checkpoint_of(study: Study, arm: Arm) -> Path:
    return arm.checkpoint or start_folder(study, arm) / "weights" / FINAL


def start_folder(study: Study, arm: Arm) -> Path:
    return study.folder / "starts" / arm.name


def pretrained_encoders(study: Study) -> dict[str, dict]:
    """Arm -> job.json of `nnssl.study.execution.job`, for the arms whose checkpoint the study makes
    itself.
    """
    return {arm.name: _start(study, arm) for arm in study.arms if arm.start in _MAKE}


def _start(study: Study, arm: Arm) -> dict:
    made = checkpoint_of(study, arm)
    commands = commands_of(study, arm, made)
    said = {
        key: value
        for key, value in settings(arm).items()
        if key not in ("tasks", "budgets", "modality", "recipe")
    }
    trains = _training_with_labels(study, arm) if arm.start == "supervised" else None
    if trains:
        said["recipe"] = _recipe_with_labels(study, arm)
    return {
        "commands": commands,
        "makes": str(made),
        "afresh": arm.start == "imagenet",
        "trains": str(runs.fold_folder(**trains)) if trains else None,
        "plans": trains["plans"] if trains else None,
        "fingerprint": files.fingerprint(said),
    }


def commands_of(study: Study, arm: Arm, made: Path) -> list[Command]:
    """What makes the checkpoint `made` of an arm in `starts`."""
    return _MAKE[arm.start](study, arm, made)


def _pretrain(study: Study, arm: Arm, made: Path) -> list[Command]:
    command = ["nnssl_pretrain", "-m", arm.method]
    command += ["-i", *map(str, arm.scans)] if arm.scans else []
    command += ["-d", *arm.datasets] if arm.datasets else []
    command += ["-a", arm.encoder] if arm.encoder else []
    before = [checkpoint_of(study, other) for other in study.arms if other.name == arm.after]
    command += ["--from", str(before[0])] if before else []
    command += ["-device", study.device, "-o", str(made.parent), *flags(arm.options), "--c"]
    return [command]


def _convert(_: Study, arm: Arm, made: Path) -> list[Command]:
    return [["nnssl_convert", str(arm.weights), "-o", str(made), *flags(arm.options)]]


def _supervise(study: Study, arm: Arm, made: Path) -> list[Command]:
    place = _training_with_labels(study, arm)
    recipe = _recipe_with_labels(study, arm)
    return [
        [
            *_plan(_labelled(arm)[0], place["plans"]),
            "-a",
            arm.encoder or PRESET,
            *recipe_flags(recipe),
        ],
        # nnU-Net starts again where there is nothing to continue
        [*runs.training(**place, device=study.device), "--c"],
        [
            sys.executable,
            "-m",
            "nnssl.study.execution.supervised",
            str(runs.fold_folder(**place)),
            str(made),
        ],
    ]


def _labelled(arm: Arm) -> tuple[str, str]:
    """Dataset and configuration of a supervised start, which has to name both."""
    if arm.dataset is None or arm.configuration is None:
        raise StudyError(f"arm {arm.name} must say dataset and configuration")
    return arm.dataset, arm.configuration


def _training_with_labels(study: Study, arm: Arm) -> dict:
    """Where nnU-Net puts the training of a supervised start, as `runs.place` for a run."""
    dataset, configuration = _labelled(arm)
    return {
        "dataset": full_name(dataset),
        "configuration": configuration,
        "fold": "all",
        "trainer": "SwinScratchTrainer",
        "plans": f"{study.name}-{arm.name}",
    }


def _recipe_with_labels(study: Study, arm: Arm) -> dict:
    """Of a supervised start, which belongs to no task."""
    return {**study.recipe, **arm.recipe}


_MAKE: dict[str, Callable[[Study, Arm, Path], list[Command]]] = {
    "pretrain": _pretrain,
    "imagenet": _convert,
    "supervised": _supervise,
}


# Plans


def plan_command(study: Study, task: Task, arm: Arm) -> Command | None:
    """`nnssl_plan ...`; None for other networks, whose plans are nnU-Net's own."""
    if arm.start in OTHERS:
        return None
    source = encoder_source(study, task, arm)
    start = ["-c", str(checkpoint_of(study, source))] if source else ["-a", arm.encoder or PRESET]
    name = runs.plans_of(study, task, arm)
    return [
        *_plan(task.dataset, name, task.plans),
        *start,
        *recipe_flags(study.recipe_of(task, arm)),
    ]


def encoder_source(study: Study, task: Task, arm: Arm) -> Arm | None:
    """The arm whose checkpoint the plans name. For a random start, which gets encoder and
    intensities from it but no
    weights: the one it is said to be like, else the first pretrained one of the task. None: a
    preset."""
    if arm.start != "scratch":
        return arm
    if arm.encoder and not arm.like:
        return None
    with_weights = [
        other for other in study.arms_of(task) if other.start not in (BASELINE, *OTHERS)
    ]
    named = [other for other in study.arms if other.name == arm.like]
    return (named or with_weights or [None])[0]


def write_default_plans(study: Study, task: Task, arm: Arm) -> Path:
    """The plans of an arm `default`: its own or the task's, with our recipe's length. Patch and
    batch stay nnU-Net's, whose network is made for them.
    """
    folder = preprocessed(task.dataset)
    plans = deepcopy(files.read_json(folder / f"{arm.plans or task.plans}.json"))
    recipe = study.recipe_of(task, arm)
    heeded = {
        key: recipe[key]
        for key in ("epochs", "iterations", "val_iterations", "foreground", "mirror")
        if key in recipe
    }
    if "iterations" in heeded:
        heeded.setdefault("val_iterations", max(1, heeded["iterations"] // 5))  # as nnssl_plan
    plans["plans_name"] = runs.plans_of(study, task, arm)
    plans[RECIPE] = Recipe(**heeded).to_dict()
    path = files.inside(folder, f"{plans['plans_name']}.json")
    files.write_json(path, plans)
    return path


def _plan(dataset: str, name: str, base: str = BASE) -> Command:
    return ["nnssl_plan", "-d", number(dataset), "-p", base, "--name", name]


def recipe_flags(recipe: Mapping) -> list[str]:
    said = {key: value for key, value in recipe.items() if key not in ("trainer", "mirror")}
    return [*flags(said), *(["--no-mirror"] if recipe.get("mirror") is False else [])]


def flags(options: Mapping) -> list[str]:
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


# Splits


def split(study: Study, task: Task) -> dict:
    """The splits of a task by budget and seed, in splits_final.json from now on. Raises SplitError."""
    folder = preprocessed(task.dataset)
    plans = files.read_json(folder / f"{task.plans}.json")
    labels = splits.labels_of(folder / identifier(plans, task.configuration))
    return splits.append(folder / splits.FILE, study, task, labels)
