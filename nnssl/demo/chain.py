"""The demo: its sizes, its stages, and the same commands that a user types.

phantoms -> nnssl_pretrain -> nnU-Net's planning
         -> nnUNetv2_train, from the checkpoint and from scratch
         -> nnUNetv2_predict on unseen phantoms
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nnssl import phantoms, trainer_path
from nnssl.types import PREPROCESSED, RAW, RESULTS

DATASET, NAME, PLANS, CONFIGURATION = "901", "Dataset901_Phantoms", "nnsslDemoPlans", "3d_fullres"
TRAINERS = {"from the checkpoint": "SwinSSLTrainer", "from scratch": "SwinScratchTrainer"}
LABELLED_SEEDS, UNSEEN_SEEDS = 1000, 2000  # the first seed of each part: no phantom is in two
# mm, about the phantoms' own: at a finer one, small crops show no anatomy
SPACING = ("5", "6", "6")

Command = list[str]


@dataclass(frozen=True)
class Size:
    """How much of everything. The defaults are meant for under 10 minutes on two idle CPU cores."""

    unlabelled: int = 32
    labelled: int = 6
    unseen: int = 4
    shape: tuple[int, int, int] | None = None  # voxels of every phantom; None: varied
    crop: tuple[int, int, int] = (32, 48, 48)
    batch_size: int = 4  # what SMIT needs
    steps: int = 150  # until the hidden blocks show organs
    patch: tuple[int, int, int] = (40, 40, 40)
    epochs: int = 5
    iterations: int = 25
    processes: int = 2  # of nnU-Net's beside the main one; each costs seconds to start


QUICK = Size(
    unlabelled=3, labelled=5, unseen=2, shape=(24, 32, 32), crop=(16, 32, 32), steps=4,
    patch=(24, 24, 24), epochs=1, iterations=2, processes=1,
)  # fmt: skip


@dataclass(frozen=True)
class ChainStage:
    """One step: commands, or a function of ours, and the folders (within the demo's) that it starts
    afresh.
    """

    name: str
    title: str
    work: list[Command] | Callable[[], None]
    makes: tuple[str, ...]


def _seeds(first: int, count: int) -> range:
    return range(first, first + count)


def _are_known(trainers: str) -> bool:
    """Whether nnU-Net looks for trainers in that folder already."""
    return trainers in os.environ.get(trainer_path.VARIABLE, "").split(os.pathsep)


@dataclass(frozen=True)
class Demo:
    """One demo in `folder` (absolute). `scans`: the user's own for pretraining, in the place of
    phantoms.
    """

    folder: Path
    device: str = "cpu"
    scans: Path | None = None
    size: Size = Size()

    @property
    def raw(self) -> Path:
        return self.folder / RAW / NAME

    @property
    def variables(self) -> dict[str, str]:
        """nnU-Net's three, turned to the demo's folder; and where our trainers are, unless that is
        known already.
        """
        own = {name: str(self.folder / name) for name in (RAW, PREPROCESSED, RESULTS)}
        trainers = trainer_path.trainers_folder()
        return own if _are_known(trainers) else {**own, trainer_path.VARIABLE: trainers}

    @property
    def processes(self) -> dict[str, str]:
        """nnU-Net's variables for its numbers of processes: data augmentation, and all else."""
        return {
            name: str(self.size.processes) for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")
        }

    def predictions(self, start: str) -> Path:
        return self.folder / "predictions" / start.replace(" ", "_")

    def settings(self) -> dict:
        """What makes a finished stage out of date when it changes; JSON-able."""
        return {
            "device": self.device,
            "scans": self.scans and str(self.scans),
            "size": repr(asdict(self.size)),
        }

    def stages(self) -> list[ChainStage]:
        """The chain, in order."""
        outputs = ("scans", RAW)
        return [
            ChainStage("phantoms", "making CT-like phantoms", self._make_phantoms, outputs),
            # resumes by itself
            ChainStage("pretrain", "pretraining with SMIT, without labels", [self._pretrain()], ()),
            ChainStage("plan", "planning by nnU-Net", self._plan(), (f"{PREPROCESSED}/{NAME}",)),
            *(self._train_stage(start) for start in TRAINERS),
            *(self._predict_stage(start) for start in TRAINERS),
        ]

    def _train_stage(self, start: str) -> ChainStage:
        trainer = TRAINERS[start]
        title = f"training {start}: fold 0 of {self.size.labelled} labelled phantoms"
        output = f"{RESULTS}/{NAME}/{trainer}__{PLANS}__{CONFIGURATION}"
        return ChainStage(f"train {start}", title, [self._train(trainer)], (output,))

    def _predict_stage(self, start: str) -> ChainStage:
        title = f"segmenting {self.size.unseen} unseen phantoms, trained {start}"
        output = str(self.predictions(start).relative_to(self.folder))
        return ChainStage(f"predict {start}", title, [self._predict(start)], (output,))

    def _make_phantoms(self) -> None:
        size = self.size
        if not self.scans:
            phantoms.write_folder(self.folder / "scans", range(size.unlabelled), size.shape)
        training = _seeds(LABELLED_SEEDS, size.labelled)
        unseen = _seeds(UNSEEN_SEEDS, size.unseen)
        phantoms.write_nnunet_dataset(self.raw, training, unseen, shape=size.shape)

    def _pretrain(self) -> Command:
        size, scans = self.size, str(self.scans or self.folder / "scans")
        return [
            *("nnssl_pretrain", "-m", "smit", "-a", "tiny", "-i", scans, "--spacing", *SPACING),
            *("--steps", str(size.steps), "--batch-size", str(size.batch_size)),
            *("--crop", *map(str, size.crop), "-device", self.device, "-np", str(size.processes)),
            "--c",  # an interrupted demo continues; where there is nothing yet, it starts
        ]

    def _plan(self) -> list[Command]:
        processes = str(self.size.processes)
        plan = ["nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", CONFIGURATION]
        ours = ["nnssl_plan", "-d", DATASET, "-p", "nnUNetPlans", "--name", PLANS]
        return [[*plan, "-npfp", processes, "-np", processes], [*ours, *self._recipe()]]

    def _recipe(self) -> list[str]:
        size = self.size
        return [
            # what two cores can do in minutes
            *("--decoder", "light", "--patch", *map(str, size.patch)),
            *("--epochs", str(size.epochs), "--iterations", str(size.iterations)),
            # short: every patch shows an organ, upright
            *("--lr", "2e-3", "--foreground", "1", "--no-mirror"),
        ]

    def _train(self, trainer: str) -> Command:
        command = ["nnUNetv2_train", DATASET, CONFIGURATION, "0", "-p", PLANS, "-tr", trainer]
        return [*command, "-device", self.device]

    def _predict(self, start: str) -> Command:
        folders = ["-i", str(self.raw / "imagesTs"), "-o", str(self.predictions(start))]
        model = ["-c", CONFIGURATION, "-f", "0", "-p", PLANS, "-tr", TRAINERS[start]]
        speed = ["-device", self.device, "--disable_tta", "-npp", "0", "-nps", "0"]
        return ["nnUNetv2_predict", "-d", DATASET, *folders, *model, *speed]
