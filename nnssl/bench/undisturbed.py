"""The run that nothing disturbs, which every disturbed one must end like."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nnssl.bench import trials
from nnssl.bench.trials import Lost, Trial


@dataclass(frozen=True)
class Undisturbed:
    """The run to compare with: folders, outcome, the seconds of all of it and of training."""

    trial: Trial
    outcome: dict
    seconds: float
    training: float

    def lend(self, trial: Trial, chance: random.Random | None = None) -> float:
        """The seconds of a run of `trial`. It finds its scans preprocessed; with `chance` half
        of the time.
        """
        if chance and chance.random() < 0.5:
            return self.seconds
        shutil.copytree(self.trial.data, trial.data, dirs_exist_ok=True)
        return self.training


def end_as(trial: Trial, whole: Undisturbed) -> None:
    """The line typed once more ends well, and as the undisturbed run did. Raises Lost."""
    trial.finish()
    trials.require_equal(trials.outcome(trial), whole.outcome)
    if left := [path.name for path in trial.results.rglob(".tmp-*")]:
        raise Lost(f"half a file is left: {left}")


def undisturbed(top: Path, raw: Path) -> Undisturbed:
    """Twice: the same bits, and the second time with the scans of the first."""
    first, again = (Trial(top / name, raw) for name in ("undisturbed", "again"))
    seconds = finish_seconds(first)
    shutil.copytree(first.data, again.data, dirs_exist_ok=True)
    training = finish_seconds(again)
    whole = Undisturbed(first, trials.outcome(first), seconds, training)
    end_as(again, whole)
    return whole


def finish_seconds(trial: Trial) -> float:
    began = time.monotonic()
    trial.finish()
    return time.monotonic() - began
