"""MoCo v3: of many keys from a slow copy of the network, which is that of another view of my crop?

Chen, Xie and He 2021, "An empirical study of training self-supervised vision transformers", ICCV,
arXiv 2104.02057.

    region -> two views
      +- student: encoder -> mean of T5 -> projector -> predictor -> q1 q2
      +- teacher (EMA): encoder -> mean of T5 -> projector -> standardised -> k1 k2
                        q1 is closer to k2, and q2 to k1, than to all other keys (InfoNCE)

T5: the tokens after the last merge (stride 32). Written from the paper; its code was not read.
Differs from the paper: a batch of 8 scans has 7 other keys where the paper has 4095, so the keys of
earlier steps are negatives too, as in MoCo v1 and v2 (He 2020, arXiv 1911.05722); other crops of
the same scan may show the same anatomy and are no negatives; views are cuts without zoom, with
flips and CT's intensities in place of colour; layer norm instead of batch norm in the heads, which
are half as wide, and running moments in place of the last batch norm, for the keys alone; gradients
are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Step
from nnssl.methods.taught_pair import TaughtPairConfig, TaughtPairMethod
from nnssl.modules.bounds import require_above_zero
from nnssl.modules.contrast import Queue, info_nce
from nnssl.modules.running import Standardise

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class MoCoV3Config(TaughtPairConfig):
    temperature: float = 0.2  # Chen 2021, section 4
    # keys of earlier steps among the negatives, two a scan; 0: none, as the paper
    queue: int = 1024
    teacher_momentum: float = 0.99  # to 1 along a cosine (Chen 2021, section 4)
    freeze_patches: bool = True  # the patch projection stays random (Chen 2021, section 4.2)
    head_hidden: int = 2048  # Chen 2021: 4096
    head_out: int = 256  # Chen 2021
    weight_decay: float = 0.1  # Chen 2021

    PUBLISHED: ClassVar[dict] = {"lr": 1.5e-4, "lr_batch": 256, "queue": 0, "head_hidden": 4096}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above_zero(self, "temperature")
        if self.queue < 0:
            raise ValueError(f"queue must be a number of keys, or 0 for none, got {self.queue}")


class MoCoV3(TaughtPairMethod):
    title = "momentum contrast, version 3"
    family = "contrastive"
    signal = "which of a teacher's keys belongs to another view of this crop"
    citation = (
        "Chen et al., An empirical study of training self-supervised vision transformers, ICCV 2021"
    )
    smallest_batch = 8
    between_scans = "total"
    compares_within_part = True
    separating = ("total",)
    Config = MoCoV3Config
    config: MoCoV3Config

    def __init__(self, encoder: Swin, config: MoCoV3Config) -> None:
        super().__init__(encoder, config, layers=3)
        if config.freeze_patches:
            self.encoder.patch_embed.proj.requires_grad_(False)
        self.keys = Standardise(config.head_out)
        self.queue = Queue(config.queue, config.head_out) if config.queue else None

    def loss(self, views: dict[str, Tensor]) -> Step:
        image, scans = views["image"].flatten(0, 1), views["scan"]
        pooled, projected = self.student(image)
        q1, q2 = self.predictor(projected).chunk(2)
        k1, k2 = self.keys(self.teacher(image)[1]).chunk(2)
        first, accuracy1 = self._contrast(q1, k2, scans)
        second, accuracy2 = self._contrast(q2, k1, scans)
        if self.queue is not None:
            self.queue.accumulate(torch.stack([k1, k2], dim=1), scans)
        monitored = {"embedding": pooled.detach(), "accuracy": (accuracy1 + accuracy2) / 2}
        return Step({"total": first + second}, monitored)

    def _contrast(
        self,
        query: Float[Tensor, "batch dim"],
        key: Float[Tensor, "batch dim"],
        scans: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Algorithm 1 of the paper; 2 temperature makes the gradient nearly independent of the
        temperature.
        """
        loss, accuracy = info_nce(query, key, self.config.temperature, scans, self.queue)
        return 2 * self.config.temperature * loss, accuracy
