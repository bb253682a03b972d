"""BYOL: predict the output of a slow copy of the network for another view. No negatives.

Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS,
arXiv 2006.07733. On 2D slices of medical scans as in arXiv 2209.00314 (2022).

    region -> two views
      +- student: encoder -> mean of T5 -> projector -> predictor -> q1 q2
      +- teacher (EMA): encoder -> mean of T5 -> projector -> standardised -> z1 z2
                        2 - 2 cos(q1, z2)  +  2 - 2 cos(q2, z1)

T5: the tokens after the last merge (stride 32).
Differs from the paper: views are cuts without zoom, with flips and CT's intensities in place of
colour; layer norm instead of batch norm in the heads, and the teacher's outputs are standardised by
running moments, without which batches of a few scans collapsed; AdamW instead of LARS, gradients
are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Step
from nnssl.methods.taught_pair import TaughtPairConfig, TaughtPairMethod
from nnssl.modules.contrast import negative_cosine
from nnssl.modules.running import Standardise


@dataclass(frozen=True)
class BYOLConfig(TaughtPairConfig):
    lr: float = 2e-4  # ours: see documentation/methods/byol.md
    # to 1 along a cosine (Grill 2020: 0.996 for batches of 4096, 0.99 for 300 epochs)
    teacher_momentum: float = 0.99
    head_hidden: int = 4096  # Grill 2020, section 3.3
    head_out: int = 256  # Grill 2020, section 3.3

    PUBLISHED: ClassVar[dict] = {"teacher_momentum": 0.996}


class BYOL(TaughtPairMethod):
    title = "bootstrap your own latent"
    family = "self-distillation without negatives"
    signal = "a teacher's output for another view"
    citation = (
        "Grill et al., Bootstrap your own latent: a new approach to self-supervised learning, "
        "NeurIPS 2020"
    )
    smallest_batch = 4
    separating = ("total",)
    Config = BYOLConfig
    config: BYOLConfig

    def __init__(self, encoder: Swin, config: BYOLConfig) -> None:
        super().__init__(encoder, config, layers=2)
        self.answers = Standardise(config.head_out)

    def loss(self, views: dict[str, Tensor]) -> Step:
        image = views["image"].flatten(0, 1)
        pooled, projected = self.student(image)
        q1, q2 = self.predictor(projected).chunk(2)
        z1, z2 = self.answers(self.teacher(image)[1]).chunk(2)
        total = 4 + 2 * negative_cosine(q1, z2) + 2 * negative_cosine(q2, z1)
        return Step({"total": total}, {"embedding": pooled.detach()})
