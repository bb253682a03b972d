"""SMIT: hide blocks of two views, predict the voxels, and what a teacher says of the patches and of the whole.

Jiang et al. 2022, "Self-supervised 3D anatomy segmentation using self-distilled masked image transformer (SMIT)",
MICCAI, arXiv 2205.10342. Heads and targets are those of DINO (Caron 2021) and iBOT (Zhou 2022).

    region -> two views -+- hidden blocks -> student -+- T5 -> linear -> voxels          L1 on hidden   (MIP)
                         |                            +- T4 -> patch head -> hidden tokens  CE, same view  (MPD)
                         |                            +- mean of T4 -> global head          CE, cross view (ITD)
                         +- nothing hidden -> teacher (EMA) -> the same two heads, centred and sharpened

T4: the tokens of stage 4 before its merge (stride 16); T5: after the merge (stride 32). Patch tokens are T4's where
blocks have the paper's 16 voxels, and those of stage 3 for blocks of 8 (coarse scans).
Differs from the paper's code, whose faults are not inherited: the teacher starts as the student, has no drop path,
its momentum follows the schedule at every step, centres are shared between processes, and it carries no decoder;
schedules are shares of the run instead of epochs; gradients are clipped; half of the regions are shown through a
random HU window, because nnU-Net clips every CT dataset at percentiles of its own; tokens are standardised by
running moments before the heads, without which small batches end in uniform targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.decoders import MultiScaleDecoder
from nnssl.modules.distillation import STAGE_OF_STRIDE, Backbone, DistillationConfig, SelfDistillation, hold_unread
from nnssl.modules.losses import Centre, cross_view, masked_l1, soft_cross_entropy
from nnssl.types import Shape
from nnssl.views.intensity import apply_window, draw_window
from nnssl.views.masking import block_grid, draw_blocks, repeat_blocks
from nnssl.views.spatial import cut, draw_offset, inner, wider


@dataclass(frozen=True)
class SMITConfig(DistillationConfig, MethodConfig):
    w_mip: float = 1.0  # masked image prediction (Jiang 2022, section 3)
    w_itd: float = 0.1  # global (image token) self-distillation
    w_mpd: float = 0.1  # masked patch token self-distillation
    mask_ratio: float = 0.7  # Jiang 2022
    mask_block: int = 16  # voxels (Jiang 2022, at 2 mm); patch tokens are those of the stage with this stride
    decode_from: int = 32  # tokens of this stride and above predict voxels: 32 is T5 alone (Jiang 2022)
    teacher_temperature_end: float = 0.07  # Jiang 2022
    temperature_warmup: float = 0.06  # share of the run: 30 of 500 epochs; the patch head starts this much later
    freeze_prototypes: float = 0.002  # share of the run: 1 of 500 epochs
    window_jitter: float = 0.5  # chance of a narrower HU window, the same for both views; not in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_block not in STAGE_OF_STRIDE:
            raise ValueError(
                f"mask_block must be the stride of a stage, {list(STAGE_OF_STRIDE)}, got {self.mask_block}"
            )
        if self.decode_from not in STAGE_OF_STRIDE:
            raise ValueError(
                f"decode_from must be the stride of a stage, {list(STAGE_OF_STRIDE)}, got {self.decode_from}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")
        if self.w_mip <= 0 and self.w_itd <= 0 and self.w_mpd <= 0:
            raise ValueError("one of w_mip, w_itd, w_mpd must be above 0")


class SMIT(SelfDistillation, Method):
    title = "self-distilled masked image transformer"
    family = "masked image modelling + self-distillation"
    signal = "hidden voxels; a teacher's answers for hidden patches and for another view"
    citation = "Jiang et al., Self-supervised 3D anatomy segmentation using SMIT, MICCAI 2022, arXiv 2205.10342"
    Config = SMITConfig

    def __init__(self, encoder: Swin, config: SMITConfig) -> None:
        stage = STAGE_OF_STRIDE[config.mask_block]
        patch = stage if config.w_mpd > 0 else None
        super().__init__(Backbone(encoder, config, pooled=(3,), image=config.w_itd > 0, patch=patch), config)
        self.image_centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)
        self.decoder = None
        if config.w_mip > 0:
            self.decoder = MultiScaleDecoder(encoder, config.decode_from)
        hold_unread(encoder, max(4 * (config.w_mip > 0), 3 * (config.w_itd > 0), stage * (config.w_mpd > 0)))

    @staticmethod
    def region(crop: Shape) -> Shape:
        """128 for 96, as the paper."""
        return wider(crop)

    def views(self, regions: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """{"image": [2 B 1 *crop], "masked": Bool [2 B *blocks]}; `regions` [B 1 *region]."""
        crop = inner(tuple(regions.shape[2:]))
        grid = block_grid(crop, self.config.mask_block)
        images, masks = [], []
        for region, generator in zip(regions, generators, strict=True):
            region = apply_window(region, draw_window(self.config.window_jitter, generator, self.ranges))
            images += [cut(region, draw_offset(region.shape[1:], crop, generator), crop) for _ in range(2)]
            masks += [draw_blocks(grid, self.config.mask_ratio, generator) for _ in range(2)]
        image = torch.stack([*images[::2], *images[1::2]])
        masked = torch.stack([*masks[::2], *masks[1::2]]).to(image.device)
        return {"image": image.unflatten(0, (2, -1)), "masked": masked.unflatten(0, (2, -1))}

    def loss(self, views: dict[str, Tensor]) -> Step:
        config = self.config
        image, hidden = views["image"].flatten(0, 1), views["masked"].flatten(0, 1)
        student = self.student(image, self._masked(hidden), hidden)
        losses, watched = {}, {}
        if config.w_mip > 0:
            predicted = self.decoder(student.maps, image.shape[2:])
            losses["mip"] = masked_l1(predicted, image, self._covered(hidden))
        teacher = self.teacher(image, None, hidden)
        if config.w_itd > 0:
            target = self.image_centre.sharpen(teacher.image, self.teacher_temperature())
            pair = (2, -1)  # view 1 is asked what the teacher says of view 2
            losses["itd"] = cross_view(
                student.image.unflatten(0, pair), target.unflatten(0, pair), config.student_temperature
            )
            watched["teacher_image"] = target
        if config.w_mpd > 0:
            target = self.patch_centre.sharpen(teacher.patch, self.teacher_temperature(delay=config.temperature_warmup))
            # Each view hides the same number of tokens: the mean over all is the mean of the views' means.
            losses["mpd"] = soft_cross_entropy(student.patch, target, config.student_temperature).mean()
            watched["teacher_patch"] = target
        watched["embedding"] = teacher.embedding
        losses["total"] = sum(getattr(config, f"w_{name}") * value for name, value in losses.items())
        return Step(losses, watched)

    def show(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        image, hidden = views["image"].flatten(0, 1), views["masked"].flatten(0, 1)
        covered = self._covered(hidden)
        shown = {"teacher sees": image, "student sees": image.masked_fill(covered, math.nan)}
        if self.decoder is not None:
            predicted = self.decoder(self.student.encoder(image, self._masked(hidden)), image.shape[2:])
            shown["predicted"] = torch.where(covered, predicted[-1].float(), image)
        return shown

    def _masked(self, hidden: Tensor) -> Tensor:
        """Hidden blocks [2B *blocks] on the encoder's token grid."""
        return repeat_blocks(hidden, self.config.mask_block // 2)

    def _covered(self, hidden: Tensor) -> Tensor:
        """Hidden blocks [2B *blocks] as hidden voxels [2B 1 *crop]."""
        return repeat_blocks(hidden, self.config.mask_block).unsqueeze(1)
