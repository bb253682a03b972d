"""SimMIM: hide blocks of a crop and predict their voxels with one linear layer.

Xie et al. 2022, "SimMIM: a simple framework for masked image modeling", CVPR, arXiv 2111.09886; in 3D as the masked
image prediction of SMIT (Jiang 2022).

    crop -> hidden blocks -> encoder -> T5 -> linear -> voxels          L1 on hidden voxels

T5: the tokens after the last merge (stride 32).
Differs from the paper: blocks of 16 voxels (32 pixels there), half of the crops are shown through a random HU window
(see `nnssl.views.intensity`), warm-up and cosine in place of the step schedule, gradients are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.encoder.swin import STRIDES, Swin
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.decoders import MultiScaleDecoder
from nnssl.modules.losses import masked_l1
from nnssl.views.intensity import apply_window, draw_window
from nnssl.views.masking import block_grid, draw_blocks, repeat_blocks


@dataclass(frozen=True)
class SimMIMConfig(MethodConfig):
    mask_ratio: float = 0.6  # Xie 2022, table 2: 0.6 with blocks of 32 pixels
    mask_block: int = 16  # voxels (Jiang 2022, at 2 mm)
    decode_from: int = 32  # tokens of this stride and above predict voxels: 32 is T5 alone (Xie 2022)
    window_jitter: float = 0.5  # chance of a narrower HU window; not in the paper
    drop_path: float = 0.0  # Xie 2022, for Swin

    def __post_init__(self) -> None:
        for name in ("mask_block", "decode_from"):
            if getattr(self, name) not in STRIDES:
                raise ValueError(f"{name} must be a stride of the encoder, {list(STRIDES)}, got {getattr(self, name)}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")


class SimMIM(Method):
    title = "simple masked image modelling"
    family = "masked image modelling"
    signal = "hidden voxels"
    citation = "Xie et al., SimMIM: a simple framework for masked image modeling, CVPR 2022, arXiv 2111.09886"
    smallest_batch = 1
    Config = SimMIMConfig

    def __init__(self, encoder: Swin, config: SimMIMConfig) -> None:
        super().__init__()
        self.config = config
        self.student = encoder
        self.decoder = MultiScaleDecoder(encoder, config.decode_from)

    @property
    def encoder(self) -> Swin:
        return self.student

    def views(self, regions: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """{"image": [B 1 *crop], "masked": Bool [B *blocks]}; `regions` [B 1 *crop]."""
        grid = block_grid(tuple(regions.shape[2:]), self.config.mask_block)
        images, masks = [], []
        for region, generator in zip(regions, generators, strict=True):
            images.append(apply_window(region, draw_window(self.config.window_jitter, generator, self.ranges)))
            masks.append(draw_blocks(grid, self.config.mask_ratio, generator))
        return {"image": torch.stack(images), "masked": torch.stack(masks).to(regions.device)}

    def loss(self, views: dict[str, Tensor]) -> Step:
        maps, predicted = self._predict(views)
        total = masked_l1(predicted, views["image"], self._covered(views))
        return Step({"total": total}, {"embedding": maps[-1].detach().flatten(2).mean(dim=2)})

    def show(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        image, covered = views["image"], self._covered(views)
        _, predicted = self._predict(views)
        hidden = image.masked_fill(covered, math.nan)
        return {"crop": image, "seen": hidden, "predicted": torch.where(covered, predicted[-1].float(), image)}

    def _predict(self, views: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder's maps, and the voxels [B 1 *crop] from each that is decoded."""
        image = views["image"]
        maps = self.student(image, repeat_blocks(views["masked"], self.config.mask_block // 2))
        return maps, self.decoder(maps, image.shape[2:])

    def _covered(self, views: dict[str, Tensor]) -> Tensor:
        """Hidden blocks as hidden voxels [B 1 *crop]."""
        return repeat_blocks(views["masked"], self.config.mask_block).unsqueeze(1)
