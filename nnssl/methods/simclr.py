"""SimCLR: of many crops, which is another view of the same one?

Chen et al. 2020, "A simple framework for contrastive learning of visual representations", ICML,
arXiv 2002.05709.

    region -+- view 1 -> encoder -> mean of T5 -> projector -> z1
            +- view 2 -> encoder -> mean of T5 -> projector -> z2
                         z1 is closer to z2 than to all others (NT-Xent): the batch, of all
                         processes, and on request the embeddings of earlier steps

T5: the tokens after the last merge (stride 32).
Differs from the paper: a batch of 8 scans has 14 negatives where the paper has thousands (a queue
of earlier embeddings can be had, Wang 2020, arXiv 1912.06798, but see
`documentation/methods/simclr.md`); other crops of the same scan may show the same anatomy and are
no negatives; views are cuts without zoom, with flips and CT's intensities in place of colour; layer
norm instead of batch norm in the projector; AdamW instead of LARS, gradients are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import MethodConfig, PairMethod, Step
from nnssl.modules.bounds import require_above_zero, require_at_least
from nnssl.modules.contrast import Queue, nt_xent
from nnssl.modules.heads import Branch
from nnssl.types import LAST


@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    lr: float = 2e-4  # ours: see documentation/methods/simclr.md
    # Tang 2022 (Swin UNETR's pretext, on CT); Chen 2020, table 5, prefers 0.1
    temperature: float = 0.5
    # embeddings of earlier steps among the negatives, two a scan (Wang 2020); 0: none, as the paper
    queue: int = 0
    head_hidden: int = 2048  # Chen 2020: as wide as ResNet-50's output
    head_out: int = 128  # Chen 2020, section 4.2

    PUBLISHED: ClassVar[dict] = {"temperature": 0.1}

    def __post_init__(self) -> None:
        require_above_zero(self, "temperature")
        require_at_least(1, self, "head_hidden", "head_out")
        if self.queue < 0:
            raise ValueError(
                f"queue must be a number of embeddings, or 0 for none, got {self.queue}"
            )


class SimCLR(PairMethod):
    title = "simple contrastive learning"
    family = "contrastive"
    signal = "which crop is another view of this one"
    citation = (
        "Chen et al., A simple framework for contrastive learning of visual representations, "
        "ICML 2020"
    )
    smallest_batch = 8
    between_scans = "total"
    compares_within_part = True
    separating = ("total",)
    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, encoder: Swin, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        encoder = encoder.copied(maskable=False, wanted=LAST)  # nothing is hidden
        self.student = Branch(encoder, config.head_hidden, config.head_out, layers=2)
        self.queue = Queue(config.queue, config.head_out) if config.queue else None

    @property
    def encoder(self) -> Swin:
        return self.student.encoder

    def loss(self, views: dict[str, Tensor]) -> Step:
        pooled, projected = self.student(views["image"].flatten(0, 1))
        first, second = projected.chunk(2)
        total, accuracy = nt_xent(first, second, self.config.temperature, views["scan"], self.queue)
        if self.queue is not None:
            self.queue.accumulate(torch.stack([first, second], dim=1), views["scan"])
        return Step({"total": total}, {"embedding": pooled.detach(), "accuracy": accuracy})
