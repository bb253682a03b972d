"""iBOT: hide boxes of a view, and predict the output of a teacher, who sees all, for each hidden
patch and for the other view.

Zhou et al. 2022, "iBOT: image BERT pre-training with online tokenizer", ICLR, arXiv 2111.07832.

    region -> 2 global views
      +- boxes hidden -> student -+- hidden tokens of T4 -> head   CE, same view   (patch)
      |                           +- mean of T4 -> head            CE, other views (image)
      +- nothing hidden -> teacher (EMA) -> the same two, centred apart, sharpened
    region -> n local views -> student -> mean of T4 -> head       CE with both    (image)

T4: the tokens of stage 4 before its merge (stride 16), where blocks have 16 voxels; T5 (stride 32)
for blocks of 32. A Swin has no class token, the mean of its tokens stands for it, as in the
authors' Swin. Both kinds of token share one head. Every scan has a view with something hidden: half
of all views, or `mask_chance` of them. Differs from the paper: no local views by default (10
there); HU windows, noise, blur and curves in place of colour jitter; masking starts with the first
step, not after 50 of 300 epochs; the prototypes keep their unit length; weight decay is constant;
schedules are fractions of the run; each kind of token is standardised by its own running moments
before the head, without which small batches end in uniform targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.host_memory import to_device
from nnssl.methods.distillation import DistillationMethod, DistillationMethodConfig
from nnssl.methods.method import Step, weighted_total
from nnssl.modules.bounds import require_weights
from nnssl.modules.encoder_with_heads import MAP_OF_STRIDE, EncoderWithHeads
from nnssl.modules.losses import Centre, cross_view, soft_cross_entropy
from nnssl.modules.selected import select_tokens
from nnssl.types import Shape
from nnssl.views.masking import block_grid, draw_cuboids, repeat_blocks
from nnssl.views.multicrop import GLOBAL_VIEWS, MultiCropConfig, multicrop
from nnssl.views.spatial import crop_size

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BLOCKS = (16, 32)  # finer tokens (T3) have not seen enough to stand for a view


@dataclass(frozen=True)
class IBOTConfig(MultiCropConfig, DistillationMethodConfig):
    # at 8 scans; Caron 2021: 5e-4 at 256. at 6e-4 targets came near uniform in 50 steps
    lr: float = 2e-4
    local_views: int = 0  # 10 in the paper's Swin; each costs an eighth of a global view
    w_image: float = 1.0  # Zhou 2022: the two terms 1:1
    w_patch: float = 1.0
    # fraction of the views with something hidden (Zhou 2022: pred_ratio 0 or 0.3)
    mask_chance: float = 0.5
    mask_ratio: float = 0.3  # of their patches (Zhou 2022)
    mask_spread: float = 0.2  # drawn uniformly within so much of it (Zhou 2022, pred_ratio_var)
    mask_block: int = 16  # voxels: which tokens are patches
    shared_head: bool = True  # Zhou 2022, table 8: better than two heads

    PUBLISHED: ClassVar[dict] = {
        "lr": 5e-4,
        "lr_batch": 256,
        "clip_norm": 3.0,  # of each tensor there, of the whole gradient here
        "freeze_prototypes": 1 / 300,
        "global_side": 0.5,  # a quarter of the area
        "local_side_low": 0.22,
        "local_side_high": 0.5,
        "local_views": 10,
        "teacher_temperature_end": 0.07,
    }

    def __post_init__(self) -> None:
        MultiCropConfig.__post_init__(self)
        DistillationMethodConfig.__post_init__(self)
        self._check_mask_block()
        self._check_mask_chance()
        self._check_mask_ratio()
        require_weights(self, "w_image", "w_patch")

    def block_sides(self, dims: int) -> Shape:
        """The side of a patch along each of `dims` axes."""
        return (self.mask_block,) * dims

    def most_hidden(self, blocks: int) -> int:
        """How many of a view's patches are hidden at most."""
        return max(1, round((self.mask_ratio + self.mask_spread) * blocks))

    def _check_mask_block(self) -> None:
        if self.mask_block not in BLOCKS:
            raise ValueError(
                f"mask_block must be the stride of one of the last stages, {BLOCKS}, got "
                f"{self.mask_block}"
            )

    def _check_mask_chance(self) -> None:
        if not 0.5 <= self.mask_chance <= 1:
            raise ValueError(
                "mask_chance must lie within 0.5 and 1, so that each scan hides something, got "
                f"{self.mask_chance}"
            )

    def _check_mask_ratio(self) -> None:
        widest = min(self.mask_ratio, 1 - self.mask_ratio)
        if not 0 <= self.mask_spread <= widest or self.mask_ratio in (0, 1):
            raise ValueError(
                "mask_ratio, mask_ratio - mask_spread and mask_ratio + mask_spread must lie "
                f"between 0 and 1; got {self.mask_ratio} and {self.mask_spread}"
            )


class IBOT(DistillationMethod):
    title = "masked self-distillation with an online tokenizer"
    family = "self-distillation"
    signal = "a teacher's outputs for hidden patches and for the other view"
    citation = (
        "Zhou et al., iBOT: image BERT pre-training with online tokenizer, ICLR 2022, "
        "arXiv 2111.07832"
    )
    smallest_batch = 4
    separating = ("image", "patch")
    Config = IBOTConfig
    config: IBOTConfig

    def __init__(self, encoder: Swin, config: IBOTConfig) -> None:
        stage = MAP_OF_STRIDE[config.mask_block]
        encoder = encoder.copied(maskable=True, wanted=(stage,))
        super().__init__(
            EncoderWithHeads(encoder, config, (stage,), patch=stage, shared=config.shared_head),
            config,
        )
        self.image_centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"global": [2 B 1 *crop], "hidden_blocks": Bool [2 B *blocks], "local": [n B 1 *half]};
        `regions` [B 1 *region].
        """
        grid = block_grid(crop_size(tuple(regions.shape[2:])), self.config.mask_block)
        hidden = torch.stack(
            [self._draw_hidden(grid, generator) for generator in generators], dim=1
        )
        views = multicrop(regions, generators, self.config, self.ranges, within)
        return {**views, "hidden_blocks": to_device(hidden, regions.device)}

    def loss(self, views: dict[str, Tensor]) -> Step:
        config, temperature = self.config, self.teacher_temperature()
        image, hidden = views["global"].flatten(0, 1), views["hidden_blocks"].flatten(0, 1)
        shape = views["global"].shape[:2]
        selected = select_tokens(hidden, shape[1] * self._most(hidden[0].numel()))
        teacher = self.teacher(image, None, selected)
        student = self.student(image, repeat_blocks(hidden, config.mask_block // 2), selected)
        predicted = self.with_local_views(student.image, views)
        targets = self.image_centre.sharpen(teacher.image, temperature)
        patches = self.patch_centre.sharpen(teacher.patch, temperature, selected.counts)
        losses = {
            "image": cross_view(predicted, targets.unflatten(0, shape), config.student_temperature),
            "patch": selected.mean(
                soft_cross_entropy(student.patch, patches, config.student_temperature)
            ),
        }
        losses["total"] = weighted_total(losses, config)
        return Step(
            losses,
            {
                "embedding": teacher.embedding,
                "teacher_image": targets,
                "teacher_patch": selected.only(patches),
            },
        )

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        image = views["global"].flatten(0, 1)
        hidden = views["hidden_blocks"].flatten(0, 1)
        covered = repeat_blocks(hidden, self.config.mask_block).unsqueeze(1)
        shown = {"teacher sees": image, "student sees": image.masked_fill(covered, math.nan)}
        if "local" in views:
            shown["student sees too"] = views["local"].flatten(0, 1)
        return shown

    def _most(self, patches: int) -> int:
        """How many patches are hidden at most in both views of a scan; `patches`: of a view."""
        views = 1 if self.config.mask_chance == 1 / GLOBAL_VIEWS else GLOBAL_VIEWS
        return views * self.config.most_hidden(patches)

    def _draw_hidden(self, grid: Shape, generator: torch.Generator) -> Tensor:
        """Bool [2 *grid]. A view hides something with `mask_chance`; one of the two always does."""
        c = self.config
        first, *fractions = torch.rand(1 + GLOBAL_VIEWS, generator=generator).tolist()
        hidden = torch.zeros(GLOBAL_VIEWS, *grid, dtype=torch.bool)
        for view, fraction in enumerate(fractions):
            if (first + view / GLOBAL_VIEWS) % 1 < c.mask_chance:
                ratio = c.mask_ratio + (2 * fraction - 1) * c.mask_spread
                hidden[view] = draw_cuboids(grid, ratio, generator)
        return hidden
