"""One of nnU-Net's trainings: its folder and its command."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnssl.commands import Command
from nnssl.types import RESULTS

NNUNET = "nnUNetv2_train"


@dataclass(frozen=True)
class NnunetTraining:
    """The names from which nnU-Net makes the folder of a training."""

    dataset: str  # the full name
    configuration: str
    fold: int | str
    trainer: str
    plans: str

    @property
    def folder(self) -> Path:
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return Path(os.environ[RESULTS], self.dataset, model, f"fold_{self.fold}")

    @property
    def is_begun(self) -> bool:
        """Whether it has left a checkpoint."""
        return has_checkpoint(self.folder)

    @property
    def has_predictions(self) -> bool:
        """Whether its validation has left predictions, next to a summary, probabilities and
        properties.
        """
        files = (self.folder / "validation").glob("*.*")
        return any(path.suffix not in (".json", ".npz", ".pkl") for path in files)

    def command(self, device: str, program: str = NNUNET) -> Command:
        arguments = [program, self.dataset, self.configuration, str(self.fold)]
        return [*arguments, "-tr", self.trainer, "-p", self.plans, "-device", device]


def has_checkpoint(fold: Path) -> bool:
    return any(fold.glob("checkpoint_*.pth"))
