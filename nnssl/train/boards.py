"""External dashboards, if enabled: TensorBoard and Weights & Biases.

Weights & Biases follows nnU-Net's own variables, so that pretraining and fine-tuning land in one
project: nnUNet_wandb_enabled, nnUNet_wandb_project, nnUNet_wandb_mode
(nnunetv2/training/logging/nnunet_logger.py).
"""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from nnssl import files

if TYPE_CHECKING:
    from nnssl.train.run import Run

ENABLED, PROJECT, MODE = "nnUNet_wandb_enabled", "nnUNet_wandb_project", "nnUNet_wandb_mode"
DEFAULT_PROJECT, DEFAULT_MODE = "nnunet", "online"  # nnU-Net's
NOTE = "wandb.json"  # the id under which a resumed run continues


class Board(Protocol):
    def add(self, row: dict, step: int) -> None:
        """The numbers of a row of log.jsonl; other values are left out."""

    def close(self) -> None: ...


def wandb_enabled() -> bool:
    """Whether nnU-Net's variable enables Weights & Biases, as nnU-Net reads it."""
    return os.environ.get(ENABLED, "0").lower() in ("1", "true", "t")


def require_packages(tensorboard: bool, wandb: bool) -> None:
    """Raises ValueError that names the extra, before any scan is read."""
    if tensorboard:
        _require_package("tensorboard", "--tensorboard")
    if wandb:
        _require_package("wandb", f"--wandb (or {ENABLED}=1)")


def _require_package(name: str, why: str) -> None:
    spec = find_spec(name)
    # without origin: some folder of that name, such as W&B's own in the current one
    if spec is None or spec.origin is None:
        raise ValueError(f'{why} needs {name}: pip install "nnssl-swin[{name}]"')


def boards(run: Run) -> list[Board]:
    """Those that the config of `run` enables; a resumed run continues in its own."""
    enabled: list[Board] = []
    if run.config.tensorboard:
        enabled.append(TensorBoard(run))
    if run.config.wandb:
        enabled.append(WeightsAndBiases(run))
    return enabled


def _scalars(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, float)}


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # from this step on, rows of before are hidden: those that the run will write again
        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def add(self, row: dict, step: int) -> None:
        for name, value in _scalars(row).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def _store_wandb_id(run: Run) -> tuple[str, bool]:
    """Keep the id of `run` in its folder; the id, and whether it was there already."""
    path = run.folder / NOTE
    resumed = path.is_file() and run.step > 0
    name = files.read_json(path)["id"] if resumed else secrets.token_hex(4)
    files.write_json(path, {"id": name})
    return name, resumed


class WeightsAndBiases:
    """One run of the project that nnU-Net's variable names; its files lie in the folder `wandb`."""

    def __init__(self, run: Run) -> None:
        import wandb  # pyright: ignore[reportMissingImports] an extra

        name, resumed = _store_wandb_id(run)
        self.run = wandb.init(
            project=os.environ.get(PROJECT, DEFAULT_PROJECT),
            mode=os.environ.get(MODE, DEFAULT_MODE),
            dir=str(run.folder),
            id=name,
            name="/".join(run.folder.parts[-2:]),
            resume="allow" if resumed else "never",
            config=run.header,
        )
        # what was sent before the run fell back to its last checkpoint cannot be sent again
        self.sent = self.run.step

    def add(self, row: dict, step: int) -> None:
        if step >= self.sent:
            self.run.log(_scalars(row), step=step)

    def close(self) -> None:
        self.run.finish()
