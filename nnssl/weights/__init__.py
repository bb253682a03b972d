"""Weights that come with the package: a folder each, whose hash is pinned here.

    NAME/model.safetensors   the checkpoint in half precision, with all of its header
    NAME/config.json         the header once more, for people
    NAME/README.md           the model card
    NAME.md                  the part of the card that no header holds: scans, figures, limits

    nnssl_convert CHECKPOINT -o nnssl/weights/NAME --hub --half --licence LICENCE \\
        --about nnssl/weights/NAME.md

makes the folder, and prints the sha256 for `RELEASED`. Who uses them: `nnssl.address` by name,
`nnssl.finetune.checkpoint_choice` by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MODEL, CARD = "model.safetensors", "README.md"  # of a folder for Hugging Face


@dataclass(frozen=True)
class Released:
    """Facts about the shipped weights, shown wherever they are used by default."""

    name: str
    sha256: str  # of MODEL
    summary: str
    good_for: str
    unknown: str
    of_ct: bool = True  # and so not made for other modalities

    @property
    def file(self) -> Path:
        return FOLDER / self.name / MODEL

    @property
    def card(self) -> Path:
        return FOLDER / self.name / CARD


DEFAULT, DEFAULT_2D = "natural_parcels_tiny", "natural_tiny"
DEFAULT_NOT_CT = "natural_tiny_3d"
RELEASED = {
    one.name: one
    for one in (
        Released(
            "natural_parcels_tiny",
            "5529e2d25557f20cb8ec65ff5cb681f7c5aa8529019a735fd7efbd2932ee40af",
            "natural images with labels (CIFAR-10), then parcels, preset tiny (2.2 M parameters), "
            "light decoder, 197 CT of head and neck at 2.5 x 3.9 x 3.9 mm",
            "CT of head and neck at about 2.5 to 4 mm, few labels",
            "other regions, finer spacings, long trainings, MRI, PET",
        ),
        Released(
            "parcels_tiny",
            "adda60148477e6c53d82b52a52cb4fac97f772f76c3a0a9bbe74e46ef61c756e",
            "parcels, preset tiny (2.2 M parameters), light decoder, 196 CT of head and neck at "
            "2.5 x 3.9 x 3.9 mm",
            "CT of head and neck at about 2.5 to 4 mm, with about two labelled cases",
            "other regions, finer spacings, long trainings, PET; on MRI they did not help",
        ),
        Released(
            "smit_tiny",
            "9570cdf70af989128cebcbb3b25c33d4cafd3804a3077cf923f0f27bf9950715",
            "SMIT with parcels, preset tiny (2.2 M parameters), light decoder, 196 CT of head and "
            "neck at 2.5 x 3.9 x 3.9 mm",
            "CT of head and neck at about 2.5 to 4 mm, few labels, short trainings",
            "other regions, finer spacings, long trainings, PET; on MRI they did not help",
        ),
        Released(
            "natural_tiny",
            "eba1eac2c2b9356a8f94894694d31d2506a24df9e03fca58f14f9ce6bd524378",
            "natural images with labels (CIFAR-10), 2D, preset tiny (1.8 M parameters), encoder "
            "alone",
            "slices of any modality (2d), few labels; measured on the heart in MRI",
            "other organs, CT in 2D, long trainings",
            of_ct=False,
        ),
        Released(
            "natural_tiny_3d",
            "d8606884b307b2bd415a185883f2b4fd44933269bdaeb963eaf418fdefa6515f",
            "natural images with labels (CIFAR-10), inflated to 3D, preset tiny (2.2 M "
            "parameters), encoder alone",
            "volumes of other modalities than CT, few labels; measured on the hippocampus in MRI",
            "other organs, long trainings, PET",
            of_ct=False,
        ),
    )
}
NAMES = ", ".join(RELEASED)


def default(dims: int, is_ct: bool = True) -> Released:
    """Those that a training of as many dimensions starts from.

    is_ct: whether any channel of its images is CT.
    """
    if dims == 2:
        return RELEASED[DEFAULT_2D]
    return RELEASED[DEFAULT if is_ct else DEFAULT_NOT_CT]


def of_hash(sha256: str) -> Released | None:
    """The released weights whose file has this hash."""
    return next((one for one in RELEASED.values() if one.sha256 == sha256), None)


def about(sha256: str, is_ct: bool = True) -> list[str]:
    """Lines for a log on the weights with this hash; none where they are not of this package.

    is_ct: whether any channel of the images at hand is CT.
    """
    if (one := of_hash(sha256)) is None:
        return []
    lines = [
        f"  shipped with nnssl-swin as {one.name}: {one.summary}",
        f"  good for: {one.good_for}; untested: {one.unknown}",
        f"  model card: {one.card}",
    ]
    if one.of_ct and not is_ct:
        lines.append(
            f"  WARNING: no channel of this dataset is CT, and {one.name} was pretrained on CT "
            "only. On MRI such weights were no better than a random start, or behind it "
            "(documentation/mri.md). Start from natural images: nnssl_plan -d DATASET -c "
            f"{DEFAULT_NOT_CT}, or export nnssl_checkpoint={DEFAULT_NOT_CT}"
        )
    return lines
