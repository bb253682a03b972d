"""The options of `nnssl_convert`; without importing PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from nnssl import address
from nnssl.options import option
from nnssl.types import Shape, Spacing


@dataclass(frozen=True)
class ConvertRequest:
    """The options of `nnssl_convert`; None: as the file or its source says."""

    file: Path | str = option(
        help="a file of PyTorch or safetensors, or its address: hf://owner/repo/file, https://...; "
        "or a checkpoint of ours, for --hub and back",
        flag="FILE",
        metavar="FILE",
        read=address.path_or_address,
    )
    output: Path = option(
        help="where to write, a file or with --hub a folder; must not exist",
        flag="-o",
        metavar="CHECKPOINT",
    )
    source: str | None = option(
        None,
        "whose weights, where the file does not show it: smit_miccai22, smit_10k, monai_swinvit, "
        "monai_dae, voco, suprem, monai, imagenet",
        metavar="NAME",
    )
    prefix: str | None = option(
        None,
        "what the names of the encoder's tensors begin with, where a file has several",
        metavar="TEXT",
    )
    hu: tuple[float, ...] | None = option(
        None,
        "LOW HIGH: the HU that became 0 and 1; or LOW HIGH MEAN SD; default: by the source",
        metavar="N",
    )
    no_hu: bool = option(False, "let images pass as nnU-Net normalises them")
    spacing: Spacing | None = option(
        None, "mm of the pretraining; default: by the source", metavar=("Z", "Y", "X")
    )
    crop: Shape | None = option(
        None, "voxels z y x, or y x, of it; default: by the source", metavar="N"
    )
    axes: str | None = option(
        None, "order of the axes it saw; default: by the source", choices=("xyz", "zyx")
    )
    merging: str | None = option(
        None, "MONAI before 1.5, or since; default: by the source", choices=("legacy", "all")
    )
    dims: int | None = option(
        None, "3: make a 3D encoder of 2D weights; default: as in the file", choices=(2, 3)
    )
    rgb: bool = option(False, "keep red, green and blue, for data of three channels")
    hub: bool = option(
        False,
        "write a folder for Hugging Face: model.safetensors, config.json, and README.md as model "
        "card",
    )
    half: bool = option(
        False, "store the weights in half precision, half the size; they are read as float32"
    )
    licence: str | None = option(
        None,
        "of the weights, for the card, such as apache-2.0; default: as their source states it",
        metavar="NAME",
    )
    about: Path | None = option(
        None,
        "Markdown for the card: whose scans, figures, limits, and what else no file holds",
        metavar="FILE",
    )

    @property
    def about_others(self) -> list[str]:
        """The fields given that say something of third-party weights."""
        excluded = {"file", "output", "hub", "half", "licence", "about"}
        return [f.name for f in fields(self) if f.name not in excluded and getattr(self, f.name)]
