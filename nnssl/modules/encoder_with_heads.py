"""Shared parts of the self-distillation family: settings, and an encoder with heads.

Caron et al. 2021 (DINO, arXiv 2104.14294); Zhou et al. 2022 (iBOT, arXiv 2111.07832).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.modules.bounds import (
    require_above_zero,
    require_at_least,
    require_fraction,
    require_part_of_run,
)
from nnssl.modules.encoder_protocol import EncoderT
from nnssl.modules.heads import PrototypeHead, pooled
from nnssl.modules.selected import SelectedTokens

if TYPE_CHECKING:
    from jaxtyping import Float

# the number of the encoder's map with tokens of this stride
MAP_OF_STRIDE = {4: 1, 8: 2, 16: 3, 32: 4}


@dataclass(frozen=True)
class DistillationConfig:
    """Heads, temperatures and teacher."""

    prototypes: int = 8192  # Jiang 2022; iBOT's published runs
    head_hidden: int = 2048  # Caron 2021
    head_bottleneck: int = 256  # Caron 2021
    student_temperature: float = 0.1  # Caron 2021
    teacher_temperature_start: float = 0.04  # Caron 2021
    # Caron 2021, the code's default; 0.07 there for long runs of large batches
    teacher_temperature_end: float = 0.04
    temperature_warmup: float = 0.1  # fraction of the run: 30 of 300 epochs (Caron 2021; Zhou 2022)
    teacher_momentum: float = 0.996  # to 1 along a cosine (Grill 2020; Caron 2021)
    centre_momentum: float = 0.9  # Caron 2021
    # fraction of the run; 1 of 100 epochs in Caron 2021, who advise more where it helps
    freeze_prototypes: float = 0.1
    export: str = "teacher"  # or "student": whose encoder is kept

    def __post_init__(self) -> None:
        if self.export not in ("teacher", "student"):
            raise ValueError(f"export must be teacher or student, got {self.export!r}")
        names = ("student_temperature", "teacher_temperature_start", "teacher_temperature_end")
        require_above_zero(self, *names)
        require_fraction(self, "teacher_momentum", "centre_momentum", "temperature_warmup")
        require_part_of_run(self, "freeze_prototypes")
        require_at_least(2, self, "prototypes")
        require_at_least(1, self, "head_hidden", "head_bottleneck")


class DistillationOutput(NamedTuple):
    """The output of student or teacher for N views."""

    maps: Sequence[Tensor | None]  # those that a head reads or that were wanted
    embedding: Tensor  # [N d]
    image: Tensor | None  # [N K] logits
    patch: Tensor | None  # [selected tokens, K] logits


class EncoderWithHeads(nn.Module, Generic[EncoderT]):
    """The network of student and teacher: the encoder and the heads in use.

    pooled: the maps whose means over tokens, side by side, are the embedding.
    image:  whether there is a head for the embedding.
    patch:  the map whose tokens a second head takes, if any.
    shared: the two heads have one MLP and one set of prototypes; each standardises its tokens by
            itself, because means over tokens vary less than tokens do.
    """

    def __init__(
        self,
        encoder: EncoderT,
        config: DistillationConfig,
        pooled: tuple[int, ...],
        image: bool = True,
        patch: int | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled, self.patch = pooled, patch
        head = (config.head_hidden, config.head_bottleneck, config.prototypes)
        width = sum(encoder.channels[number] for number in pooled)
        self.image_head = PrototypeHead(width, *head) if image else None
        self.patch_head = (
            PrototypeHead(encoder.channels[patch], *head) if patch is not None else None
        )
        if shared and self.image_head is not None and self.patch_head is not None:
            self.patch_head.mlp = self.image_head.mlp
            self.patch_head.prototypes = self.image_head.prototypes

    def forward(
        self,
        image: Float[Tensor, "batch channels *size"],
        masked: object = None,
        selected: SelectedTokens | None = None,
        wanted: Collection[int] = (),
    ) -> DistillationOutput:
        """`masked`: voxels hidden from the encoder; `selected`: the patch tokens to compute, of all
        views or of the first ones; `wanted`: maps that others read.
        """
        patches = () if selected is None or self.patch is None else (self.patch,)
        maps = self.encoder(image, masked, (*self.pooled, *patches, *wanted))
        means = [pooled(maps[number]) for number in self.pooled]
        embedding = means[0] if len(means) == 1 else torch.cat(means, dim=1)
        patch = None
        if self.patch_head is not None and self.patch is not None and selected is not None:
            patch = self.patch_head(selected.of(maps[self.patch]), selected.counts)
        whole = self.image_head(embedding) if self.image_head is not None else None
        return DistillationOutput(maps, embedding, whole, patch)
