"""The arguments of `nnssl_plan`, besides the recipe; without importing PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnssl import address, weights
from nnssl.options import A_SIZE, at_least, option
from nnssl.types import NAME, Shape, Spacing

DATASET, PRETRAINING = "dataset", "pretraining"  # whose spacing
MEMORY = 8  # GB, nnU-Net's own target


def _parse_spacing(given: list[str]) -> str | Spacing:
    """`--spacing dataset`, `--spacing pretraining` or `--spacing Z Y X`."""
    try:
        return tuple(float(word) for word in given)
    except ValueError:
        return " ".join(given)


@dataclass(frozen=True)
class PlansRequest:
    """The arguments of `nnssl_plan`."""

    dataset: str | int = option(help="dataset ID or name, as nnU-Net's -d", flag="-d", metavar="ID")
    checkpoint: Path | str | None = option(
        None,
        "checkpoint_final.pth of nnssl_pretrain, hf://owner/repo/file, https://..., or a name of "
        f"released weights: {weights.NAMES}; default: $nnssl_checkpoint, the only one, or released "
        f"weights: {weights.DEFAULT} ({weights.DEFAULT_NOT_CT} where no channel is CT, "
        f"{weights.DEFAULT_2D} where all is 2d)",
        flag="-c",
        metavar="CHECKPOINT",
        read=address.path_or_address,
    )
    preset: str | None = option(
        None,
        "an encoder of this size without a checkpoint, for SwinScratchTrainer",
        flag="-a",
        metavar="PRESET",
    )
    gpu_memory_target: float | None = option(
        None,
        f"GPU memory for a training; default: {MEMORY}",
        flag="-gpu_memory_target",
        metavar="GB",
    )
    spacing: str | Spacing = option(  # z y x as read
        DATASET,
        (
            "target spacing: dataset (nnU-Net's choice, default), pretraining (the checkpoint's), "
            "or Z Y X in mm"
        ),
        metavar="MM",
        nargs="+",
        join=_parse_spacing,
    )
    base: str | None = option(
        None,
        "take spacing, patch and batch size from these plans, such as nnUNetPlans",
        flag="-p",
        metavar="PLANS",
    )
    name: str = option(NAME, "name of the new plans; default: %(default)s")
    decoder: str | None = option(
        None, "swinunetr, light or nnunet; default: the pretrained decoder, or swinunetr"
    )
    patch: Shape | None = option(  # for the configurations of as many axes
        None,
        "patch size Z Y X, or Y X for 2d; default: planned for the memory",
        metavar="N",
        check=A_SIZE,
    )
    batch_size: int | None = option(
        None,
        "patches per iteration; default: planned for the memory",
        metavar="B",
        check=at_least(1),
    )
    recipe: dict = field(default_factory=dict)  # fields of `Recipe`; None counts as left out
