"""nnU-Net's log of each epoch of a training: pseudo Dice, losses and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from nnssl import files
from nnssl.recipe import RECIPE
from nnssl.study.rows import EpochRow
from nnssl.types import FINAL

PLANS = "plans.json"  # of a model


def epochs(run: str, fold: Path) -> list[EpochRow]:
    """fold: nnU-Net's folder of a finished training."""
    import torch

    # nnU-Net's own
    saved = torch.load(fold / FINAL, map_location="cpu", weights_only=False, mmap=True)
    return of_log(run, saved["logging"])


def iterations(fold: Path) -> int | None:
    """Of an epoch, where the recipe in the model's plans says so."""
    path = fold.parent / PLANS
    recipe = files.read_json(path).get(RECIPE) if path.is_file() else None
    return recipe.get("iterations") if isinstance(recipe, dict) else None


def of_log(run: str, log: Mapping[str, Sequence[float]]) -> list[EpochRow]:
    """log: nnU-Net's, an entry per epoch, of which a killed training may have begun one more."""
    names = ("mean_fg_dice", "train_losses", "val_losses")
    columns = [log[name] for name in (*names, "epoch_start_timestamps", "epoch_end_timestamps")]
    return [
        _epoch_row(run, epoch, *values) for epoch, values in enumerate(zip(*columns, strict=False))
    ]


def _epoch_row(
    run: str, epoch: int, dice: float, train_loss: float, val_loss: float, start: float, end: float
) -> EpochRow:
    return EpochRow(
        run=run,
        epoch=epoch,
        dice=_finite(dice),
        train_loss=_finite(train_loss),
        val_loss=_finite(val_loss),
        seconds=float(end - start),
    )


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
