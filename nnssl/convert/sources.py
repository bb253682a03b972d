"""Whose weights a file holds, as data: what its tensors cannot tell, because it is not in the file.

`marks` are parts of tensor names; a file is of the first source of its layout of which all marks
occur. `hints` are parts that other people's networks have as well: with them alone a file is not
taken for one of that source, but refused until its user names the source (`nnssl_convert
--source`). A source named by hand overrules both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nnssl.hu import HUPolicy
from nnssl.types import Shape, Spacing

UNSTATED = "licence of the weights: unstated"
ABDOMEN = (-175.0, 250.0)  # HU that become 0 and 1
IMAGENET = (0.449, 0.226)  # mean and std of grey values from 0 to 1: those of the colours, averaged
UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Source:
    """What has to be known of weights beside their tensors. Spacing and crop are (z, y, x), in mm
    and voxels.

    windows, merging, axes, taps: as in `SwinConfig`; merging None: nobody knows, it has to be said.
    chunks: the order in which merging "all" joined tokens, a key of `adapt.CHUNKS`.
    range:  the HU that became 0 and 1; None: it has to be said, or that there is none.
    scale:  (mean, std) of what the network then saw, of values from 0 to 1.
    plain:  without a range, nnU-Net's own normalisation is near enough to what the weights saw.
    """

    name: str
    title: str
    layouts: tuple[str, ...]
    citation: str
    licence: str  # of the weights, as their publishers state it
    marks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    windows: str = "monai"
    merging: str | None = "legacy"
    chunks: str = "monai"
    axes: str = "xyz"
    taps: str = "merge"
    drop_path: float = 0.0
    range: tuple[float, float] | None = None
    scale: tuple[float, float] = UNIT
    plain: bool = False
    spacing: Spacing | None = None
    crop: Shape = (96, 96, 96)

    def crop_in(self, dims: int) -> Shape:
        return (self.crop * 3)[:dims]

    def policy(self, clip: tuple[float, float]) -> HUPolicy:
        low, high = clip
        mean, std = self.scale
        return HUPolicy(low, high, low + mean * (high - low), std * (high - low))


MONAI: dict = {"layouts": ("monai",)}
SMIT: dict = {
    "layouts": ("smit",),
    "windows": "smit",
    "merging": "all",
    "chunks": "smit",
    "taps": "stage",
    "drop_path": 0.1,
}
TANG = (
    "Tang et al., Self-supervised pre-training of Swin Transformers for 3D medical image "
    "analysis, CVPR 2022"
)

SOURCES = (
    Source(
        "smit_10k",
        "SMIT, 10K scans",
        licence=UNSTATED,
        marks=("qkv.bias",),
        crop=(128, 128, 128),
        citation="Jiang et al., Self-supervised 3D anatomy segmentation using SMIT, MICCAI 2022",
        **SMIT,
    ),
    Source(
        "smit_miccai22",
        "SMIT, MICCAI 2022",
        licence=UNSTATED,
        range=ABDOMEN,
        spacing=(2.0, 2.0, 2.0),
        citation="Jiang et al., Self-supervised 3D anatomy segmentation using SMIT, MICCAI 2022",
        **SMIT,
    ),
    Source(
        "monai_dae",
        "MONAI ssl_pretrained_weights.pth (Disruptive Autoencoders)",
        ("monai_nested",),
        "Valanarasu et al., Disruptive Autoencoders, arXiv 2307.16896",
        UNSTATED,
    ),
    Source(
        "voco",
        "VoCo and VoComni, B, L and H",
        licence="licence: Apache-2.0",
        marks=("layers1c.", "student.layer1."),  # v2 of MONAI's encoder, VoCo's projection head
        hints=("layers1c.",),
        range=ABDOMEN,
        spacing=(1.5, 1.5, 1.5),
        crop=(64, 64, 64),
        citation="Wu et al., VoCo, CVPR 2024; Large-scale 3D medical image pre-training, arXiv "
        "2410.09890",
        **MONAI,
    ),
    Source(
        "suprem",
        "SuPreM and CLIP-driven Universal Model",
        licence="licence: see its repository (CC BY-NC-ND 4.0 for SuPreM)",
        marks=("backbone.", "organ_embedding", "GAP.0."),  # of the universal model
        hints=("backbone.",),
        range=ABDOMEN,
        spacing=(1.5, 1.5, 1.5),
        citation="Li et al., How well do supervised models transfer to 3D image segmentation?, "
        "ICLR 2024",
        **MONAI,
    ),
    Source(
        "monai_swinvit",
        "MONAI model_swinvit.pt, 5050 CT",
        licence=UNSTATED,
        marks=("mlp.fc1.",),
        range=(-1000.0, 1000.0),
        spacing=(2.0, 1.5, 1.5),
        citation=TANG,
        **MONAI,
    ),
    Source(
        "monai",
        "a Swin UNETR of MONAI, trained elsewhere",
        licence=UNSTATED,
        merging=None,
        citation=TANG,
        **MONAI,
    ),
    Source(
        "imagenet",
        "2D ImageNet Swin of timm, torchvision or its authors",
        ("timm", "torchvision", "swin"),
        "Liu et al., Swin Transformer, ICCV 2021",
        UNSTATED,
        windows="exact",
        merging="all",
        axes="zyx",
        taps="stage",
        drop_path=0.1,
        scale=IMAGENET,
        plain=True,
        crop=(112, 112),
    ),
)


def identify_source(layout: str, names: Iterable[str]) -> Source:
    """The source of a file in `layout` with these names of tensors. Raises ValueError where it may
    be a known one or anybody's own network.
    """
    text = "\n".join(names)
    found = next(s for s in _of_layout(layout) if _occur(s.hints or s.marks, text))
    if not _occur(found.marks, text):
        raise _undecided(found)
    return found


def _occur(parts: tuple[str, ...], text: str) -> bool:
    return all(part in text for part in parts)


def _undecided(source: Source) -> ValueError:
    """A guess would set merging, HU, spacing and licence, and nothing would show that it failed."""
    lacking = [mark for mark in source.marks if mark not in source.hints]
    return ValueError(
        f"the file may be of {source.name} ({source.title}), but its names do not show it: they "
        f"have {', '.join(source.hints)}, as any Swin UNETR of MONAI may, and not "
        f"{', '.join(lacking)}. If it is, give --source {source.name}. If it is another one, such "
        "as your own, give --source monai with --merging legacy (trained with MONAI before 1.5) or "
        "--merging all (1.5 and later), and --hu LOW HIGH or --no-hu"
    )


def _of_layout(layout: str) -> list[Source]:
    return [source for source in SOURCES if layout in source.layouts]


def source_by_name(name: str, layout: str) -> Source:
    """Raises ValueError for a name that is unknown, or is of files in other layouts."""
    fitting = {source.name: source for source in _of_layout(layout)}
    if name not in fitting:
        raise ValueError(
            f"--source {name} does not match a file of layout {layout}; allowed for this layout: "
            f"{', '.join(fitting)}"
        )
    return fitting[name]
