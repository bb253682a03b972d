"""DINO: for large and small views of one region, predict a teacher's output for the large ones.

Caron et al. 2021, "Emerging properties in self-supervised vision transformers", ICCV, arXiv
2104.14294.

    region -+- 2 global views -+-> teacher (EMA) -> mean of T5 -> head, centred, sharpened     p_t
            |                  +-> student       -> mean of T5 -> head                     \\   p_s
            +- n local views   --> student       -> mean of T5 -> head                     /
                                            CE(p_t, p_s), every pair but a view with itself

T5: the tokens after the last merge (stride 32); a Swin has no class token, its mean stands for it,
as in the authors' experiments with Swin. `pooled_maps` above 1 puts the means of so many last maps
side by side, after CoralBay (arXiv 2606.03888). Differs from the paper: 4 local views of half the
side instead of 8 to 10; HU windows, noise, blur and curves in place of colour jitter; weight decay
is constant; schedules are fractions of the run; 8192 prototypes (65536 there, for 10^6 images);
tokens are standardised by running moments before the head, without which small batches end in
uniform targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.distillation import DistillationMethod, DistillationMethodConfig
from nnssl.methods.method import Step
from nnssl.modules.encoder_with_heads import EncoderWithHeads
from nnssl.modules.losses import Centre, cross_view
from nnssl.views.multicrop import MultiCropConfig, multicrop

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class DINOConfig(MultiCropConfig, DistillationMethodConfig):
    # at 8 scans; Caron 2021: 5e-4 at 256. at 6e-4 targets came near uniform in 50 steps
    lr: float = 2e-4
    pooled_maps: int = 1  # the last map alone (Caron 2021); 5: all five

    PUBLISHED: ClassVar[dict] = {
        "lr": 5e-4,
        "lr_batch": 256,
        "clip_norm": 3.0,  # of each tensor there, of the whole gradient here
        "prototypes": 65536,
        "freeze_prototypes": 0.01,
        "local_views": 8,
        "global_side": 0.63,
        "local_side_low": 0.22,
        "local_side_high": 0.63,
    }

    def __post_init__(self) -> None:
        MultiCropConfig.__post_init__(self)
        DistillationMethodConfig.__post_init__(self)
        if not 1 <= self.pooled_maps <= 5:
            raise ValueError(
                f"pooled_maps must lie within 1 and the encoder's 5 maps, got {self.pooled_maps}"
            )


class DINO(DistillationMethod):
    title = "self-distillation without labels"
    family = "self-distillation"
    signal = "a teacher's outputs for other views of the same region"
    citation = (
        "Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021, "
        "arXiv 2104.14294"
    )
    smallest_batch = 4
    separating = ("total",)
    Config = DINOConfig
    config: DINOConfig

    def __init__(self, encoder: Swin, config: DINOConfig) -> None:
        pooled = tuple(range(5 - config.pooled_maps, 5))
        encoder = encoder.copied(maskable=False, wanted=pooled)  # nothing is hidden
        super().__init__(EncoderWithHeads(encoder, config, pooled), config)
        self.image_centre = Centre(config.prototypes, config.centre_momentum)

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"global": [2 B 1 *crop], "local": [n B 1 *half]}; `regions` [B 1 *region]."""
        return multicrop(regions, generators, self.config, self.ranges, within)

    def loss(self, views: dict[str, Tensor]) -> Step:
        image = views["global"].flatten(0, 1)
        teacher = self.teacher(image)
        student = self.with_local_views(self.student(image).image, views)
        target = self.image_centre.sharpen(teacher.image, self.teacher_temperature())
        total = cross_view(
            student,
            target.unflatten(0, views["global"].shape[:2]),
            self.config.student_temperature,
        )
        return Step({"total": total}, {"embedding": teacher.embedding, "teacher_image": target})

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        kinds = [kind for kind in ("global", "local") if kind in views]
        return {
            f"{kind} view {n}": view
            for kind in kinds
            for n, view in enumerate(views[kind], start=1)
        }
