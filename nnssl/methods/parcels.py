"""Parcels: segment the collection into classes of tissue and place that were found without labels.

Ours. The classes are clusters (`nnssl.data.parcels`), as in Caron et al. 2018, "Deep clustering for
unsupervised learning of visual features", ECCV, arXiv 1807.05520, but of voxels, and fixed before
the training; that segmenting made classes teaches few-shot segmentation is from Ouyang et al. 2020,
"Self-supervision with superpixels", ECCV, arXiv 2007.09886.

    crop -> window, contrast, noise -> encoder -> the fine-tuning network's decoder -> which parcel?    CE, all voxels

The task has the form of the one that follows: scans of one region lie alike, so that tissue and
place name organs and their parts, coarsely. Encoder and decoder are pretrained as one; all but the
heads is carried over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.heads import pooled
from nnssl.network.decoders import full_options
from nnssl.network.reconstruction import PretrainedDecoder
from nnssl.views.intensity import apply_intensity, draw_intensity


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
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")


class Parcels(Method):
    title = "segmentation of unlabelled parcels"
    family = "clustering"
    signal = "classes of tissue and place, found by clustering"
    citation = (
        "Ours; after Caron et al. 2018, arXiv 1807.05520, and Ouyang et al. 2020, arXiv 2007.09886"
    )
    needs_parcels = True
    smallest_batch = 1
    Config = ParcelsConfig

    def __init__(self, encoder: Swin, config: ParcelsConfig) -> None:
        super().__init__()
        self.config = config
        encoder.mask_token = None  # nothing is hidden
        self.student = encoder
        self.decoder = PretrainedDecoder(
            config.decoder, encoder, 1 + config.classes, deep_supervision=True
        )

    @property
    def encoder(self) -> Swin:
        return self.student

    @property
    def network_decoder(self) -> PretrainedDecoder:
        return self.decoder

    def views(
        self, regions: Tensor, generators: Sequence[torch.Generator], within: Tensor | None = None
    ) -> dict[str, Tensor]:
        """{"image" [B 1 *crop]}; `regions` [B 1 *crop]. No voxel moves, so that the parcels stay
        where they are.
        """
        return {
            "image": apply_intensity(
                regions, [draw_intensity(one, self.ranges) for one in generators]
            )
        }

    def loss(self, views: dict[str, Tensor]) -> Step:
        parcels = views["parcels"]
        maps = self.student(views["image"])
        outputs = self.decoder(maps, views["image"])
        weights = [0.5**level for level in range(len(outputs))]  # nnU-Net's, for coarser outputs
        terms = [
            F.cross_entropy(logits.float(), at_size(parcels, logits.shape[2:]))
            for logits in outputs
        ]
        total = sum(weight * term for weight, term in zip(weights, terms, strict=True)) / sum(
            weights
        )
        right = (outputs[0].detach().argmax(dim=1) == parcels).float()
        body = (parcels > 0).float()
        accuracy = (right * body).sum() / body.sum().clamp(min=1)
        return Step(
            {"total": total},
            {"embedding": pooled(maps[-1].detach()), "accuracy": accuracy},
        )

    def show(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        image, parcels = views["image"], views["parcels"]
        predicted = self.decoder(self.student(image), image)[0].argmax(dim=1)
        return {
            "crop": image,
            "parcels": self._shaded(parcels, image),
            "predicted": self._shaded(predicted, image),
        }

    def _shaded(self, labels: Tensor, image: Tensor) -> Tensor:
        """Labels [B *s] as greys of the image's range [B 1 *s]; numbers that follow each other look
        different.
        """
        count = 1 + self.config.classes
        shade = labels[:, None] * (count // 2 - 1) % count / count
        return image.min() + shade * (image.max() - image.min())


def at_size(labels: Tensor, size: torch.Size) -> Tensor:
    """Every second, fourth, ... label along each axis: [B *s] -> [B *size], where size is s over a
    step, rounded up.
    """
    for axis, (have, want) in enumerate(zip(labels.shape[1:], size, strict=True), start=1):
        step = -(-have // want)
        index = torch.arange(want, device=labels.device) * step
        labels = labels.index_select(axis, index.clamp(max=have - 1))
    return labels
