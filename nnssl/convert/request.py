"""The options of `nnssl_convert`; without importing PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from nnssl import address
from nnssl.options import option
from nnssl.types import Shape, Spacing


@dataclass(frozen=True)
class ConvertRequest:
    """The options of `nnssl_convert`; None: taken from the file or its source."""

    file: Path | str = option(
        help="a PyTorch or safetensors file, or its address: hf://owner/repo/file, https://...; "
        "or a checkpoint of this package, to convert to or from --hub",
        flag="FILE",
        metavar="FILE",
        read=address.path_or_address,
    )
    output: Path = option(
        help="output file, or folder with --hub; must not exist yet",
        flag="-o",
        metavar="CHECKPOINT",
    )
    source: str | None = option(
        None,
        "origin of the weights, if the file does not show it: smit_miccai22, smit_10k, "
        "monai_swinvit, monai_dae, voco, suprem, monai, imagenet",
        metavar="NAME",
    )
    prefix: str | None = option(
        None,
        "prefix of the encoder's tensor names, if the file has several encoders",
        metavar="TEXT",
    )
    hu: tuple[float, ...] | None = option(
        None,
        "LOW HIGH: the HU mapped to 0 and 1; or LOW HIGH MEAN STD; default: by the source",
        metavar="N",
    )
    no_hu: bool = option(False, "keep nnU-Net's normalisation of the images")
    spacing: Spacing | None = option(
        None, "spacing of the pretraining in mm; default: by the source", metavar=("Z", "Y", "X")
    )
    crop: Shape | None = option(
        None, "crop of the pretraining in voxels, z y x or y x; default: by the source", metavar="N"
    )
    axes: str | None = option(
        None, "axis order of the pretraining; default: by the source", choices=("xyz", "zyx")
    )
    merging: str | None = option(
        None,
        "patch merging of MONAI before 1.5 (legacy), or since (all), or its mergingv2 (v2); "
        "default: by the source",
        choices=("legacy", "all", "v2"),
    )
    dims: int | None = option(
        None,
        "3: inflate 2D weights to a 3D encoder, also those of a checkpoint of nnssl_pretrain; "
        "default: as in the file",
        choices=(2, 3),
    )
    rgb: bool = option(False, "keep red, green and blue, for data of three channels")
    hub: bool = option(
        False,
        "write a folder for Hugging Face: model.safetensors, config.json and the model card "
        "README.md",
    )
    half: bool = option(
        False, "store the weights in half precision, at half the size; they are loaded as float32"
    )
    licence: str | None = option(
        None,
        (
            "licence of the weights for the card, such as apache-2.0; default: as stated by their "
            "source"
        ),
        metavar="NAME",
    )
    about: Path | None = option(
        None,
        (
            "Markdown file for the card: origin of the scans, results, limitations, and whatever "
            "the file does not record"
        ),
        metavar="FILE",
    )

    @property
    def about_others(self) -> list[str]:
        """The fields given that say something of third-party weights."""
        excluded = {"file", "output", "hub", "half", "licence", "about"}
        return [f.name for f in fields(self) if f.name not in excluded and getattr(self, f.name)]
