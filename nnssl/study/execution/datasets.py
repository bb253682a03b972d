"""nnU-Net's datasets in a study: names, folders, and remaining planning and preprocessing."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.commands import Command
from nnssl.study import file_lock
from nnssl.study.design.description import Arm, Study
from nnssl.study.execution.job_records import StudyError
from nnssl.study.execution.shell import Foreground
from nnssl.types import BASE, PREPROCESSED, RAW

# nnU-Net's own plans that a study makes where they are missing, and by which planner
PLANNERS = {
    f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")
}
LOCK = ".preprocessing.lock"  # in a dataset's folder


@dataclass(frozen=True)
class Dataset:
    """A dataset by its ID, "501", or its name, "Dataset501_Name". All raise StudyError for one that
    nnU-Net does not know.
    """

    given: str

    @property
    def name(self) -> str:
        """The full one."""
        from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

        given = int(self.given) if self.given.isdigit() else self.given
        try:
            return maybe_convert_to_dataset_name(given)
        except (RuntimeError, ValueError) as error:
            raise StudyError(f"dataset {given} was not found in $nnUNet_raw: {error}") from error

    @property
    def number(self) -> str:
        """Some of nnU-Net's commands take nothing else."""
        from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

        return str(convert_dataset_name_to_id(self.name))

    @property
    def about(self) -> dict:
        """The dataset.json that its makers wrote."""
        return files.read_json(Path(os.environ[RAW], self.name, "dataset.json"))

    @property
    def folder(self) -> Path:
        """The folder with nnU-Net's plans and preprocessed data."""
        return Path(os.environ[PREPROCESSED], self.name)

    def read_plans(self, name: str) -> dict:
        return files.read_json(self.folder / f"{name}.json")

    def stored(self, configuration: str, plans: str = BASE) -> Path:
        """The folder with a configuration's preprocessed cases."""
        return self.folder / identifier(self.read_plans(plans), configuration)

    def commands(self, configuration: str, plans: str = BASE) -> list[Command]:
        """The remaining planning and preprocessing, as known now; none where every training case is
        stored. Raises StudyError where plans that nobody here can make are asked for.
        """
        if not (self.folder / f"{plans}.json").is_file():
            return [self._plan(configuration, plans)]
        self._require(configuration, plans)
        if self._stored_cases(configuration, plans) >= self.about["numTraining"]:
            return []
        return [self._preprocess(configuration, plans)]

    def require_stored(self, configuration: str, plans: str = BASE) -> None:
        """Raises StudyError where nnU-Net has left cases out."""
        if commands := self.commands(configuration, plans):
            raise self._incomplete(configuration, plans, commands[0])

    def _incomplete(self, configuration: str, plans: str, command: Command) -> StudyError:
        there = (self.folder / f"{plans}.json").is_file()
        stored = self._stored_cases(configuration, plans) if there else 0
        return StudyError(
            f"dataset {self.given}: {stored} of {self.about['numTraining']} cases are stored for "
            f"{configuration}, although nnU-Net's commands succeeded. To see why, type: "
            f"{shlex.join(command)}. If dataset.json counts too many, correct its numTraining"
        )

    def _preprocess(self, configuration: str, plans: str) -> Command:
        words = ["-plans_name", plans, "-c", configuration, "-np", _processes()]
        return ["nnUNetv2_preprocess", "-d", self.number, *words]

    def _require(self, configuration: str, plans: str) -> None:
        known = self.read_plans(plans)["configurations"]
        if configuration not in known:
            raise StudyError(
                f"dataset {self.given} has no configuration {configuration}; {plans} has "
                f"{', '.join(known)}"
            )

    def _plan(self, configuration: str, plans: str) -> Command:
        named = ["-d", self.number]
        if plans in PLANNERS:
            return ["nnUNetv2_plan_experiment", *named, "-pl", PLANNERS[plans]]
        if plans == BASE:
            words = ["-c", configuration, "-npfp", _processes(), "-np", _processes()]
            return ["nnUNetv2_plan_and_preprocess", *named, *words]
        raise self._no_plans(plans)

    def _no_plans(self, plans: str) -> StudyError:
        return StudyError(
            f"dataset {self.given} has no plans {plans}; create them with nnU-Net, for example "
            f"with another spacing (mm):\n  nnUNetv2_plan_experiment -d {self.number} "
            f"-overwrite_plans_name {plans} -overwrite_target_spacing Z Y X"
        )

    def _stored_cases(self, configuration: str, plans: str) -> int:
        cases = _count(self.stored(configuration, plans), ".pkl")
        labels = _count(self.folder / "gt_segmentations", self.about["file_ending"])
        return min(cases, labels)  # nnU-Net copies the labels last


def wanted(study: Study) -> list[tuple[Dataset, str, str]]:
    """(dataset, configuration, nnU-Net's plans) of all tasks, of other networks, and of arms
    pretrained with labels; each once.
    """
    found = [(task.dataset, task.configuration, task.plans) for task in study.tasks]
    found += _of_other_networks(study)
    found += [(*labelled(arm), BASE) for arm in study.arms if arm.start == "supervised"]
    return [
        (Dataset(name), configuration, plans) for name, configuration, plans in dict.fromkeys(found)
    ]


def _of_other_networks(study: Study) -> list[tuple[str, str, str]]:
    """(name, configuration, plans) where they have plans of their own."""
    return [
        (task.dataset, task.configuration, arm.plans)
        for task, arm in study.pairs
        if arm.start == "default" and arm.plans
    ]


def labelled(arm: Arm) -> tuple[str, str]:
    """Dataset and configuration of a supervised start, which has to name both."""
    if arm.dataset is None or arm.configuration is None:
        raise StudyError(f"arm {arm.name} needs both dataset and configuration")
    return arm.dataset, arm.configuration


def preprocess(study: Study, here: Foreground) -> None:
    """nnU-Net's plans and data of all datasets; which data are missing is known with the plans.

    nnU-Net empties its folder first, so that two calls at once would remove each other's cases: the
    second one waits, and finds them. Raises CommandError, or StudyError where cases are missing
    afterwards.
    """
    for dataset, configuration, plans in wanted(study):
        dataset.folder.mkdir(parents=True, exist_ok=True)
        with file_lock.exclusive(dataset.folder / LOCK) as lock:
            _provide(dataset, configuration, plans, here, lock)


def _provide(dataset: Dataset, configuration: str, plans: str, here: Foreground, lock: int) -> None:
    """Plan and preprocess what is missing."""
    for _ in ("plan", "preprocess"):
        commands = dataset.commands(configuration, plans)
        here.run(commands, f"data-{dataset.given}-{configuration}", lock)
    dataset.require_stored(configuration, plans)


def identifier(plans: dict, configuration: str) -> str:
    """The name of the folder with a configuration's data."""
    entry = plans["configurations"][configuration]
    return entry.get("data_identifier") or identifier(plans, entry["inherits_from"])


def _count(folder: Path, ending: str) -> int:
    return sum(1 for _ in folder.glob(f"*{ending}"))


def _processes() -> str:
    return os.environ.get("nnUNet_def_n_proc", "4")  # noqa: SIM112 nnU-Net's name
