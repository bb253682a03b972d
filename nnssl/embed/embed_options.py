"""The options of `nnssl_embed`; without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnssl import address, limits, weights
from nnssl.options import option
from nnssl.train.pretrain_options import DEVICE, FOLDERS
from nnssl.types import Shape, Spacing

STRIDES = "2, 4, 8, 16 or 32"


def _is_positive(word: str) -> bool:
    return word.isdigit() and int(word) > 0


def _window(given: list[str]) -> Literal["whole"] | Shape:
    if given == ["whole"]:
        return "whole"
    if len(given) == 3 and all(map(_is_positive, given)):
        return tuple(map(int, given))
    raise ValueError(
        f"--window takes three positive numbers Z Y X, or whole; got {' '.join(given)}"
    )


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `nnssl_embed`. Raises ValueError for --nifti without --dense."""

    sources: Sequence[Path] = option(**FOLDERS)
    output: Path = option(
        help=("a new folder, or that of an earlier run of the same command"),
        flag="-o",
        metavar="FOLDER",
    )
    checkpoint: Path | str | None = option(  # None: as the trainers choose
        None,
        "a checkpoint_final.pth, hf://owner/repo/file, https://... or a name of released weights: "
        f"{weights.NAMES}; default: $nnssl_checkpoint, the only one, or {weights.DEFAULT}",
        flag="-c",
        metavar="CHECKPOINT",
        read=address.path_or_address,
    )
    masks: Path | None = option(
        None,
        "folder of label files named like the scans (or without _0000), for means per label",
        metavar="FOLDER",
    )
    dense: int | None = option(
        None,
        f"also write the full feature map with this stride in voxels: {STRIDES}",
        metavar="STRIDE",
    )
    nifti: bool = option(False, "maps as .nii.gz instead of .npz")
    window: Literal["whole"] | Shape | None = option(
        None,
        "window size Z Y X in voxels, or whole; default: whole up to about 4 million voxels",
        metavar="N",
        nargs="+",
        join=_window,
    )
    spacing: Spacing | None = option(
        None, "spacing in mm, for weights whose own is unknown", metavar=("Z", "Y", "X")
    )
    picture: str | None = option(
        None,
        (
            "also draw neighbours.png and projection.png, coloured by folder; names: without "
            "thumbnails of scans"
        ),
        nargs="?",
        const="thumbnails",
        choices=("thumbnails", "names"),
    )
    num_processes: int = option(
        factory=lambda: min(4, limits.cores()),
        help="processes that read and resample; default: %(default)s",
        flag="-np",
        metavar="N",
    )
    device: str | None = option(None, **DEVICE)

    def __post_init__(self) -> None:
        if self.nifti and not self.dense:
            raise ValueError(
                "--nifti needs the maps of --dense STRIDE: add --dense, or leave --nifti out"
            )
