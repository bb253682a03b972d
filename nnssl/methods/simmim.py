"""SimMIM: hide blocks of a crop and predict their voxels with one linear layer.

Xie et al. 2022, "SimMIM: a simple framework for masked image modeling", CVPR, arXiv 2111.09886; in
3D as the masked image prediction of SMIT (Jiang 2022).

    crop -> hidden blocks -> encoder -> T3, T4, T5 -> a linear layer each -> voxels
            smooth L1 on hidden voxels

T3, T4, T5: the tokens of stages 3 and 4 and after the last merge (strides 8, 16, 32).
Differs from the paper: blocks of 16 voxels (32 pixels there), of which only those that show some
anatomy are hidden and scored; T3 and T4 predict as well, each by itself; smooth L1; half of the
crops are shown through a random HU window (see `nnssl.views.intensity`), warm-up and cosine in
place of the step schedule, gradients are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.heads import pooled
from nnssl.modules.losses import masked_l1
from nnssl.modules.masked import BlockSides, MaskedConfig
from nnssl.network.reconstruction import (
    Reconstruction,
    as_seen,
    masked_encoder,
    on_voxels,
    require_known_decoder,
    shown_to_encoder,
    voxel_decoder,
)
from nnssl.views.intensity import apply_windows, draw_window
from nnssl.views.masking import draw_masks, draw_visible

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class SimMIMConfig(MaskedConfig, MethodConfig):
    mask_ratio: float = 0.6  # Xie 2022, table 2: 0.6 with blocks of 32 pixels
    drop_path: float = 0.0  # Xie 2022, for Swin

    PUBLISHED: ClassVar[dict] = {
        "lr": 2e-4,
        "lr_batch": 512,
        "clip_norm": 5.0,
        "mask_block": BlockSides(32),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known_decoder(self)


class SimMIM(Method):
    title = "simple masked image modelling"
    family = "masked image modelling"
    signal = "hidden voxels"
    citation = (
        "Xie et al., SimMIM: a simple framework for masked image modeling, CVPR 2022, "
        "arXiv 2111.09886"
    )
    smallest_batch = 1
    Config = SimMIMConfig
    config: SimMIMConfig

    def __init__(self, encoder: Swin, config: SimMIMConfig) -> None:
        super().__init__()
        self.config = config
        self.student = masked_encoder(encoder, config)
        self.decoder = voxel_decoder(encoder, config)
        self.student.freeze_unread(self.decoder.maps)

    @property
    def encoder(self) -> Swin:
        return self.student

    @property
    def network_decoder(self) -> Reconstruction | None:
        return self.decoder if isinstance(self.decoder, Reconstruction) else None

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image" [B 1 *crop], "hidden_blocks" Bool [B *blocks], "offset" [1 B dims]: zeros};
        `regions` [B 1 *crop].

        With `visible_only` also "visible" int64 [B m], the blocks that are computed.
        """
        c, dims = self.config, regions.ndim - 2
        windows = [draw_window(c.window_jitter, generator, self.ranges) for generator in generators]
        image = apply_windows(regions, windows)
        block = c.mask_block.along(dims)
        hidden = draw_masks(image, block, c.mask_ratio, c.mask_air, generators)
        shown = {
            "image": image,
            "hidden_blocks": hidden,
            "offset": torch.zeros(1, len(regions), dims, dtype=torch.long, device=image.device),
        }
        if c.visible_only:
            shown["visible"] = draw_visible(hidden, image, block, c.mask_ratio, generators)
        return shown

    def loss(self, views: dict[str, Tensor]) -> Step:
        maps, predicted = self._predict(views)
        covered = on_voxels(views["hidden_blocks"], self.config)
        total = masked_l1(predicted, views["image"], covered, self.config.smooth_l1)
        return Step({"total": total}, {"embedding": pooled(maps[-1].detach())})

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        image, covered = views["image"], on_voxels(views["hidden_blocks"], self.config)
        _, predicted = self._predict(views)
        return {
            "crop": image,
            "seen": as_seen(image, views["hidden_blocks"], views.get("visible"), self.config),
            "predicted": torch.where(covered, predicted[-1].float(), image),
        }

    def _predict(self, views: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder's maps, and the voxels [B 1 *crop] from each that is decoded."""
        image, hidden = views["image"], views["hidden_blocks"]
        shown = shown_to_encoder(hidden, views.get("visible"), self.config)
        maps = self.student(image, shown, self.decoder.maps)
        return maps, self.decoder(maps, image, on_voxels(hidden, self.config))
