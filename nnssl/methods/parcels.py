"""Parcels: segment scans into classes of tissue and position that were found without labels.

Ours. The classes are clusters (`nnssl.data.parcel_maps`), as in Caron et al. 2018, "Deep clustering
for unsupervised learning of visual features", ECCV, arXiv 1807.05520, but of voxels, and fixed
before the training; that segmenting artificial classes teaches few-shot segmentation is from Ouyang
et al. 2020, "Self-supervision with superpixels", ECCV, arXiv 2007.09886.

    crop -> window, contrast, noise -> encoder -> the fine-tuning network's decoder
         -> which parcel?    CE, all voxels

The task has the form of the one that follows: scans of one region lie alike, so that tissue and
place name organs and their parts, coarsely. Encoder and decoder are pretrained as one; all but the
heads is carried over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.bounds import require_at_least
from nnssl.modules.heads import pooled
from nnssl.network.decoders import full_options
from nnssl.network.reconstruction import ParcelDecoder
from nnssl.views.intensity import apply_intensity, draw_intensity

if TYPE_CHECKING:
    from jaxtyping import Float, Int

GOLDEN = 0.618  # of the way from one grey to the next: labels of any number spread evenly


@dataclass(frozen=True)
class ParcelsConfig(MethodConfig):
    classes: int = 64  # measured with no other number
    decoder: str = "light"  # of the fine-tuning network: light, swinunetr or nnunet
    lr: float = 1e-3  # as a segmentation from a random start
    lr_batch: int = 2
    lr_most: float = 1e-3
    beta2: float = 0.98  # as our fine-tuning
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        full_options(self.decoder)
        require_at_least(2, self, "classes")
        if self.published:
            raise ValueError("parcels has no published settings: leave out published=true")

    @property
    def parcel_classes(self) -> int:
        return self.classes


class Parcels(Method):
    title = "segmentation of unlabelled parcels"
    family = "clustering"
    signal = "classes of tissue and position, found by clustering"
    citation = (
        "Ours; after Caron et al. 2018, arXiv 1807.05520, and Ouyang et al. 2020, arXiv 2007.09886"
    )
    smallest_batch = 1
    Config = ParcelsConfig
    config: ParcelsConfig

    def __init__(self, encoder: Swin, config: ParcelsConfig) -> None:
        super().__init__()
        self.config = config
        self.student = encoder.copied(maskable=False)  # nothing is hidden
        self.decoder = ParcelDecoder(config.decoder, encoder, config.classes)

    @property
    def encoder(self) -> Swin:
        return self.student

    @property
    def network_decoder(self) -> ParcelDecoder:
        return self.decoder

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image" [B 1 *crop]}; `regions` [B 1 *crop]. No voxel moves, so that the parcels stay
        aligned.
        """
        draws = [draw_intensity(generator, self.ranges) for generator in generators]
        return {"image": apply_intensity(regions, draws)}

    def loss(self, views: dict[str, Tensor]) -> Step:
        maps = self.student(views["image"])
        total, accuracy = self.decoder.loss(maps, views["image"], views["parcels"])
        embedding = pooled(maps[-1].detach())
        return Step({"total": total}, {"embedding": embedding, "accuracy": accuracy})

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        image, parcels = views["image"], views["parcels"]
        predicted = self.decoder(self.student(image), image)[0].argmax(dim=1)
        return {
            "crop": image,
            "parcels": self._shaded(parcels, image),
            "predicted": self._shaded(predicted, image),
        }

    @staticmethod
    def _shaded(labels: Tensor, image: Tensor) -> Tensor:
        """Labels [B *s] as greys of each image's own range [B 1 *s]; adjacent numbers differ."""
        flat = image.flatten(1)
        low, high = flat.amin(dim=1), flat.amax(dim=1)
        shade = torch.where(labels > 0, 0.2 + 0.8 * (GOLDEN * labels % 1), 0.0)[:, None]
        along = (-1, *[1] * (image.ndim - 1))
        return low.view(along) + shade * (high - low).view(along)
