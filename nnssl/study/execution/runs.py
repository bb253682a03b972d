"""Which runs a study has, where each lives, and by which of nnU-Net's commands it is made.

A run's folder in the study, runs/<run>/, holds job.json (all that `nnssl.study.execution.job`
needs), log.txt, outcome.json and, once it is done, rows.jsonl. The training itself lies where
nnU-Net puts it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.commands import Command
from nnssl.study.design.description import Arm, Budget, Study, Task, settings
from nnssl.study.design.splits import Split
from nnssl.types import RESULTS

JOB, LOG, OUTCOME, ROWS = "job.json", "log.txt", "outcome.json", "rows.jsonl"
TRAINER = "SwinSSLTrainer"  # of arms with pretrained weights, unless the recipe names another
FIXED_TRAINERS = {"scratch": "SwinScratchTrainer", "default": "DefaultNetworkTrainer"}
DATA = ("dataset", "configuration", "plans")  # what of a task decides on the training's data
EPOCHS = 1000  # nnU-Net's own, where the recipe says nothing


class StudyError(RuntimeError):
    """What keeps a study from going on; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """One training: an arm on a task with a budget of cases and a seed (or fold)."""

    study: Study
    task: Task
    arm: Arm
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.name}__{self.arm.name}__{self.budget}__{self.seed}"

    @property
    def folder(self) -> Path:
        return self.study.folder / "runs" / self.name

    @property
    def trainer(self) -> str:
        return trainer_of(self.study, self.task, self.arm)

    @property
    def plans(self) -> str:
        return plans_of(self.study, self.task, self.arm)

    @property
    def epochs(self) -> int:
        """0 where nobody here decides on them."""
        if self.arm.start == "elsewhere":
            return 0
        return int(self.study.recipe_of(self.task, self.arm).get("epochs", EPOCHS))


def all_runs(study: Study) -> list[Run]:
    """All runs, in the order in which they are done: every arm of a small budget before the next
    one.
    """
    return [
        Run(study, task, arm, budget, seed)
        for seed in study.seeds
        for budget in study.budgets
        for task in study.tasks
        for arm in study.arms_of(task)
        if budget in study.budgets_of(arm)
    ]


def trainer_of(study: Study, task: Task, arm: Arm) -> str:
    fixed = arm.trainer or FIXED_TRAINERS.get(arm.start)
    return fixed or study.recipe_of(task, arm).get("trainer", TRAINER)


def plans_of(study: Study, task: Task, arm: Arm) -> str:
    """The name of the plans: of their own for each arm and task, since a model's folder is named
    after them. What is trained elsewhere has those that were made there.
    """
    if arm.start == "elsewhere" and arm.plans:
        return arm.plans
    return f"{study.name}-{task.name}-{arm.name}"


def training(
    dataset: str,
    configuration: str,
    fold: int | str,
    trainer: str,
    plans: str,
    device: str,
    program: str = "nnUNetv2_train",
) -> Command:
    return [
        program,
        dataset,
        configuration,
        str(fold),
        "-tr",
        trainer,
        "-p",
        plans,
        "-device",
        device,
    ]


def fold_folder(
    dataset: str, configuration: str, fold: int | str, trainer: str, plans: str
) -> Path:
    """Where nnU-Net puts a training; `dataset` is the full name."""
    return Path(
        os.environ[RESULTS], dataset, f"{trainer}__{plans}__{configuration}", f"fold_{fold}"
    )


def job(run: Run, dataset: str, split: Split, plans: Mapping) -> dict:
    """What goes into job.json. `dataset`: the full name; `plans`: content of the plans file.

    `fingerprint` changes with whatever would make it another training: arm, recipe, checkpoint,
    cases.
    """
    made_of = {
        "task": {key: value for key, value in settings(run.task).items() if key in DATA},
        "recipe": run.study.recipe_of(run.task, run.arm),
        "trainer": run.trainer,
        "checkpoint": plans.get("pretrain_info", {}).get("sha256") or run.arm.encoder,
        "train": split.train,
        "val": split.val,
    }
    elsewhere = {}
    if run.arm.start == "default" and run.arm.plans:
        made_of["plans"] = run.arm.plans
    if run.arm.start == "elsewhere":
        made_of |= {"recipe": {}, "plans": run.plans}
        elsewhere = {"elsewhere": str(run.arm.train or ""), "val": split.val}
    return {
        "run": run.name,
        "task": run.task.name,
        "arm": run.arm.name,
        "budget": run.budget,
        "cases": len(split.train),
        "seed": run.seed,
        "dataset": dataset,
        "configuration": run.task.configuration,
        "fold": split.fold,
        "trainer": run.trainer,
        "plans": run.plans,
        "device": run.study.device,
        "tolerance": run.task.tolerance,
        **elsewhere,
        "fingerprint": files.fingerprint(made_of),
    }


def place(job: Mapping) -> dict:
    """Where nnU-Net puts the training of a run's job: the arguments of `fold_folder`."""
    return {key: job[key] for key in ("dataset", "configuration", "fold", "trainer", "plans")}


def refuse_others(folder: Path, job: Mapping) -> None:
    """Raises StudyError where a new run would take for its own what another study of the same name
    has trained.
    """
    fold = fold_folder(**place(job))
    if "elsewhere" in job:
        return
    if not (folder / JOB).is_file() and any(fold.glob("checkpoint_*.pth")):
        raise StudyError(
            f"{fold} holds a training that this study did not begin, so that {folder.name} would "
            "continue it or count it as its own. Give this study another name (name: in the "
            "description), or remove that training"
        )


def write_job(folder: Path, job: Mapping) -> None:
    """Raises StudyError where the folder holds a run, or a start, of other settings."""
    path = folder / JOB
    if path.is_file():
        before = files.read_json(path)
        if before["fingerprint"] != job["fingerprint"]:
            trained = f" and nnU-Net's training under {before['plans']}" if before["plans"] else ""
            raise StudyError(
                f"{folder.name} was begun with other settings (arm, recipe, checkpoint or cases; a "
                "random start is like the first pretrained arm unless it says like:). Give the "
                f"study or the arm another name, or remove {folder}{trained}"
            )
        if before == job:
            return
        # another tolerance, or another place: measured again, not trained
        if "commands" not in job:
            (folder / OUTCOME).unlink(missing_ok=True)
            (folder / ROWS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dict(job))


def state(folder: Path) -> tuple[str, str | None]:
    """("done" | "failed" | "missing", the reason of a failure) of a run's or a start's folder."""
    if not (folder / OUTCOME).is_file():
        return "missing", None
    outcome = files.read_json(folder / OUTCOME)
    return outcome["state"], outcome["reason"]
