"""nnU-Net's plans of each arm on each task: made by `nnssl_plan` where they are missing or out of
date.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnssl import files, options
from nnssl.commands import Command
from nnssl.finetune.architecture import INFO
from nnssl.recipe import RECIPE, Recipe
from nnssl.study.design.description import OTHERS
from nnssl.study.execution.flags import recipe_flags
from nnssl.study.execution.job_records import StudyError
from nnssl.study.execution.pretraining import PRESET, Start, nnssl_plan
from nnssl.study.execution.runs import ArmOnTask
from nnssl.study.execution.shell import Foreground
from nnssl.types import RESULTS

PLANS = "plans"  # in the record: their sha256
# what of a recipe another network heeds
HEEDED = ("epochs", "iterations", "val_iterations", "foreground", "mirror")


@dataclass(frozen=True)
class Plans:
    """nnU-Net's plans of one arm on one task: their file, the command that makes them, and whether
    they are up to date.
    """

    pair: ArmOnTask

    @property
    def path(self) -> Path:
        return files.inside(self.pair.dataset.folder, f"{self.pair.plans}.json")

    @property
    def start(self) -> Start | None:
        """Whose checkpoint they name."""
        source = self.pair.source
        return Start(self.pair.study, source) if source else None

    @property
    def obstacle(self) -> str | None:
        """Why they cannot be made: the study could not make the checkpoint that they name."""
        start = self.start
        if start is None or not start.is_ours or start.is_done:
            return None
        return f"arm {start.arm.name} has no checkpoint: {start.outcome.reason}"

    @property
    def command(self) -> Command | None:
        """`nnssl_plan ...`; None for other networks, whose plans are nnU-Net's own."""
        pair = self.pair
        if pair.arm.start in OTHERS:
            return None
        words = nnssl_plan(pair.dataset, pair.plans, pair.task.plans)
        return [*words, *self._encoder_flags, *recipe_flags(pair.recipe)]

    @property
    def _encoder_flags(self) -> list[str]:
        if start := self.start:
            return ["-c", str(start.checkpoint)]
        return ["-a", self.pair.arm.encoder or PRESET]

    @property
    def foreseen(self) -> dict:
        """What is known of their content before they are made: of ours, the checkpoint's hash."""
        if self.pair.arm.start == "elsewhere":
            return files.read_json(self.path)
        if self.pair.arm.start == "default":
            return self._default_content
        return {INFO: {"sha256": files.sha256(self.start.checkpoint)}} if self.start else {}

    @property
    def is_noted(self) -> bool:
        """Whether the study has made them before, be they up to date or not."""
        return self._record.is_file()

    def provide(self, here: Foreground) -> dict:
        """Their content, up to date from now on. Raises StudyError where trainings that this study
        does not know have plans of this name.
        """
        if self.pair.arm.start == "default":
            self.write_default()
        elif self.command and not self._is_up_to_date():
            self._require_own()
            here.run([self.command], f"plans-{self.pair.plans}")
            files.write_json(self._record, {**self._mark(), PLANS: files.sha256(self.path)})
        return files.read_json(self.path)

    def _require_own(self) -> None:
        """Raises StudyError where another study of the same name has begun to train by them: its
        recipe would change in the middle.
        """
        if self.is_noted or not (trained := self._trainings):
            return
        raise StudyError(
            f"{self.path} and trainings by it ({trained[0]}) are there, but this study did not "
            "make them; another study of the same name did, or you. Give this study another name "
            "(name: in the description), or remove both"
        )

    @property
    def _trainings(self) -> list[Path]:
        """nnU-Net's folders of models that were trained by plans of this name."""
        results = Path(os.environ[RESULTS], self.pair.dataset.name)
        return sorted(results.glob(f"*__{self.pair.plans}__*"))

    def write_default(self) -> None:
        files.write_json(self.path, self._default_content)

    @property
    def _default_content(self) -> dict:
        """Of another network: its own plans or the task's, with our recipe's length. Patch and
        batch stay nnU-Net's, whose network is made for them.
        """
        pair = self.pair
        content = pair.dataset.read_plans(pair.arm.plans or pair.task.plans)
        return content | {"plans_name": pair.plans, RECIPE: self._heeded_recipe.to_dict()}

    @property
    def _heeded_recipe(self) -> Recipe:
        recipe = self.pair.recipe
        heeded = {key: recipe[key] for key in HEEDED if key in recipe}
        return Recipe.chosen(options.fields_from(heeded, Recipe))

    @property
    def _record(self) -> Path:
        return self.pair.study.folder / "plans" / f"{self.pair.plans}.json"

    def _is_up_to_date(self) -> bool:
        """Whether they are there, as this study made them, of what it would make them of now."""
        if not (self.path.is_file() and self.is_noted):
            return False
        noted = files.read_json(self._record)
        # earlier versions did not note the plans themselves
        plans = noted.pop(PLANS, None)
        return noted == self._mark() and plans in (None, files.sha256(self.path))

    def _mark(self) -> dict[str, str]:
        """Changes with the command, the checkpoint, and nnU-Net's plans."""
        checkpoint = self.start.checkpoint if self.start else None
        base = self.pair.dataset.folder / f"{self.pair.task.plans}.json"
        made_of = [self.command, checkpoint and files.sha256(checkpoint), files.sha256(base)]
        return {"fingerprint": files.fingerprint(made_of)}
