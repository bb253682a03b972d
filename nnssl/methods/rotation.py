"""Rotation: by which quarter turns was this cube rotated?

Gidaris et al. 2018, "Unsupervised representation learning by predicting image rotations", ICLR,
arXiv 1803.07728; in 3D Taleb et al. 2020, "3D self-supervised methods for medical imaging",
NeurIPS, arXiv 2006.03829.

    cube -> window, blur -> one of 24 rotations -> encoder -> mean of T5 -> linear -> which?  CE

T5: the tokens after the last merge (stride 32).
Differs from the papers: all 24 rotations of the cube (Taleb: 10; a square has 4), because fewer are
soon told apart by table, spine and air; each axis is blurred by a random amount, and half of the
cubes are shown through a random HU window, so that the grain of slices and the faint table do not
answer for the anatomy; tokens are layer-normalised before the linear layer. The table is not cut
away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.swin import Swin
from nnssl.host_memory import to_device
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.bounds import require_fraction
from nnssl.modules.heads import pooled
from nnssl.modules.losses import accuracy_of
from nnssl.types import LAST, Shape
from nnssl.views.intensity import apply_windows, blur, draw_window
from nnssl.views.spatial import rotate, rotate_back, rotations

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class RotationConfig(MethodConfig):
    # 0: all, 24 for a cube and 4 for a square; else 4 (about z, Gidaris 2018) or 10 (Taleb 2020)
    classes: int = 0
    blur: float = 1.0  # greatest std of the blur along an axis, in voxels; ours
    window_jitter: float = 0.5  # chance of a narrower HU window; ours

    PUBLISHED: ClassVar[dict] = {"blur": 0.0, "window_jitter": 0.0}

    def __post_init__(self) -> None:
        if self.classes not in (0, 4, 10, 24):
            raise ValueError(f"classes must be 0 (all), 4, 10 or 24, got {self.classes}")
        if not 0 <= self.blur < 10:
            raise ValueError(f"blur must be a number of voxels from 0 to 10, got {self.blur}")
        require_fraction(self, "window_jitter")


class Rotation(Method):
    title = "rotation prediction"
    family = "rotation"
    signal = "by which quarter turns a cube was turned"
    citation = (
        "Gidaris et al., Unsupervised representation learning by predicting image rotations, "
        "ICLR 2018"
    )
    smallest_batch = 4
    Config = RotationConfig
    config: RotationConfig

    def __init__(self, encoder: Swin, config: RotationConfig) -> None:
        super().__init__()
        self.config = config
        self.student = encoder.copied(maskable=False, wanted=LAST)  # nothing is hidden
        dims = encoder.config.spatial_dims
        self.rotations = rotations(dims, config.classes or {2: 4, 3: 24}[dims])
        self.head = _classifier(encoder.channels[-1], len(self.rotations))

    @staticmethod
    def region(crop: Shape) -> Shape:
        """The crop itself. Raises ValueError for one whose sides differ: its shape would reveal the
        rotation.
        """
        if len(set(crop)) > 1:
            raise _no_cube(crop)
        return crop

    @property
    def encoder(self) -> Swin:
        return self.student

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image": [B 1 *cube], "turn": [B], which rotation it was}; `regions` [B 1 *cube]."""
        windows, turns, stds = [], [], []
        for generator in generators:
            windows.append(draw_window(self.config.window_jitter, generator, self.ranges))
            turns.append(int(torch.randint(len(self.rotations), (), generator=generator)))
            stds.append(torch.rand(regions.ndim - 2, generator=generator) * self.config.blur)
        blurred = blur(apply_windows(regions, windows), torch.stack(stds))
        pairs = zip(blurred, turns, strict=True)
        rotated = torch.stack([rotate(cube, self.rotations[turn]) for cube, turn in pairs])
        return {"image": rotated, "turn": to_device(torch.tensor(turns), regions.device)}

    def loss(self, views: dict[str, Tensor]) -> Step:
        embedding, logits = self._classify(views["image"])
        total = F.cross_entropy(logits.float(), views["turn"])
        accuracy = accuracy_of(logits, views["turn"])
        return Step({"total": total}, {"embedding": embedding.detach(), "accuracy": accuracy})

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        """Where the prediction is right, the cube that is turned back by it lies as it did
        before.
        """
        predicted = self._classify(views["image"])[1].argmax(dim=1)
        return {
            "turned": views["image"],
            "as it lay": self._turn_back(views["image"], views["turn"]),
            "predicted to lie": self._turn_back(views["image"], predicted),
        }

    def _classify(
        self, image: Float[Tensor, "batch 1 *size"]
    ) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch turns"]]:
        """The pooled tokens [B d], and the logits [B classes]."""
        embedding = pooled(self.student(image, wanted=LAST)[-1])
        return embedding, self.head(embedding)

    def _turn_back(self, images: Tensor, turns: Tensor) -> Tensor:
        pairs = zip(images, turns.tolist(), strict=True)
        return torch.stack([rotate_back(image, self.rotations[turn]) for image, turn in pairs])


def _no_cube(crop: Shape) -> ValueError:
    cube = " ".join([str(min(crop))] * len(crop))
    return ValueError(
        f"rotation needs a crop of equal sides, got {'x'.join(map(str, crop))}: type --crop {cube}"
    )


def _classifier(channels: int, classes: int) -> nn.Sequential:
    """Initialised as in Swin: first predictions near chance."""
    last = nn.Linear(channels, classes)
    nn.init.trunc_normal_(last.weight, std=0.02)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(channels), last)
