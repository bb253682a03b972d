"""SMIT: hide blocks of two views; predict the voxels, and a teacher's output for the patches and
for the whole.

Jiang et al. 2022, "Self-supervised 3D anatomy segmentation using self-distilled masked image
transformer (SMIT)", MICCAI, arXiv 2205.10342. Heads and targets are those of DINO (Caron 2021) and
iBOT (Zhou 2022).

    region -> two views
      +- hidden blocks -> student -+- T3, T4, T5 -> linear -> voxels     smooth L1      (MIP)
      |                            +- T4 -> patch head -> hidden tokens  CE, same view  (MPD)
      |                            +- mean of T4 -> global head          CE, cross view (ITD)
      +- nothing hidden -> teacher (EMA) -> the same two heads, centred and sharpened

T3, T4: the tokens of stages 3 and 4 before their merge (strides 8, 16); T5: after the last one
(stride 32). Patch tokens are T4's where blocks have the paper's 16 voxels, and T3's where their
shortest side has 8 (coarse scans).
Differs from the paper's code, whose faults are not inherited: the teacher starts as the student,
has no drop path, its momentum follows the schedule at every step, centres are shared between
processes, and it carries no decoder; schedules are fractions of the run instead of epochs;
gradients are clipped; only blocks that show some anatomy are hidden and scored, T3 and T4 predict
voxels as well, each by itself, with smooth L1 (`nnssl.modules.masked`), and patches are compared in
at most `patch_tokens` tokens per view; half of the regions are shown through a random HU window,
because nnU-Net clips every CT dataset at percentiles of its own; tokens are standardised by running
moments before the heads, without which small batches end in uniform targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from nnssl.encoder.swin import ALL, Swin
from nnssl.host_memory import to_device
from nnssl.methods.distillation import DistillationMethod, DistillationMethodConfig
from nnssl.methods.method import Step, weighted_total
from nnssl.modules.bounds import require_at_least, require_not_negative, require_weights
from nnssl.modules.encoder_with_heads import MAP_OF_STRIDE, DistillationOutput, EncoderWithHeads
from nnssl.modules.losses import Centre, cross_view, masked_l1, soft_cross_entropy
from nnssl.modules.masked import MaskedConfig
from nnssl.modules.selected import SelectedTokens, select_tokens
from nnssl.network.decoders import full_options
from nnssl.network.reconstruction import (
    LINEAR,
    ParcelDecoder,
    PretrainedDecoder,
    as_seen,
    masked_encoder,
    on_voxels,
    require_known_decoder,
    shown_to_encoder,
    voxel_decoder,
)
from nnssl.views.intensity import apply_windows, draw_window
from nnssl.views.masking import draw_masks, draw_visible, keep_at_most, repeat_blocks, uniform
from nnssl.views.spatial import crop_size, cut, draw_offset, per_scan

if TYPE_CHECKING:
    from jaxtyping import Float, Int

IMAGE_MAP = 3  # the number of the map that is averaged to stand for a whole view


@dataclass(frozen=True)
class SMITConfig(MaskedConfig, DistillationMethodConfig):
    w_mip: float = 1.0  # masked image prediction (Jiang 2022, section 3)
    w_itd: float = 0.1  # global (image token) self-distillation
    w_mpd: float = 0.1  # masked patch token self-distillation
    mask_ratio: float = 0.7  # Jiang 2022
    # selected per view at most, drawn from the hidden ones; 0: all, as the paper
    patch_tokens: int = 256
    teacher_temperature_end: float = 0.07  # Jiang 2022
    # fraction of the run: 30 of 500 epochs; the patch head starts this much later
    temperature_warmup: float = 0.06
    # of `nnssl.data.parcel_maps`, segmented in the first view with nothing hidden; not in the paper
    w_parcels: float = 0.0
    classes: int = 64  # parcels
    parcels_decoder: str = "light"  # of the fine-tuning network: light, swinunetr or nnunet
    freeze_prototypes: float = 0.002  # fraction of the run: 1 of 500 epochs
    # how many of the two views the teacher sees; 1: patches of that one, the whole of the other
    teacher_views: int = 2

    PUBLISHED: ClassVar[dict] = {
        "lr_batch": 6,
        "weight_decay": 0.01,
        "patch_tokens": 0,
        "export": "student",
    }

    def __post_init__(self) -> None:
        DistillationMethodConfig.__post_init__(self)
        MaskedConfig.__post_init__(self)
        self._check_patches()
        self._check_teacher_views()
        require_weights(self, "w_mip", "w_itd", "w_mpd")
        require_not_negative(self, "w_parcels")
        self._check_decoders()

    def _check_teacher_views(self) -> None:
        if self.teacher_views not in (1, 2):
            raise ValueError(f"teacher_views must be 1 or 2, got {self.teacher_views}")

    def _check_patches(self) -> None:
        if self.patch_stride not in MAP_OF_STRIDE:
            raise ValueError(
                "the shortest side of mask_block must be the stride of a stage, "
                f"{list(MAP_OF_STRIDE)}, got {self.mask_block}"
            )
        if self.patch_tokens < 0:
            raise ValueError(
                f"patch_tokens must be a number of tokens, or 0 for all, got {self.patch_tokens}"
            )

    def _check_decoders(self) -> None:
        require_known_decoder(self)
        full_options(self.parcels_decoder)
        if self.w_parcels > 0:
            require_at_least(2, self, "classes")
        if self.w_mip == 0 and self.decoder != LINEAR:
            raise ValueError(
                f"w_mip=0 predicts no voxels, so decoder={self.decoder} would learn nothing: set "
                "decoder=linear, or w_mip above 0"
            )
        if self.w_parcels > 0 and self.decoder != LINEAR:
            raise ValueError(
                f"decoder={self.decoder} and w_parcels={self.w_parcels} both pretrain a decoder; "
                "set decoder=linear, or w_parcels=0"
            )

    @property
    def parcel_classes(self) -> int:
        return self.classes if self.w_parcels > 0 else 0

    @property
    def patch_stride(self) -> int:
        """Voxels, of the tokens that stand for hidden patches: several per block if longer."""
        return min(self.mask_block)

    @property
    def patch_map(self) -> int:
        """The number of the map with these tokens."""
        return MAP_OF_STRIDE[self.patch_stride]


class SMIT(DistillationMethod):
    title = "self-distilled masked image transformer"
    family = "masked image modelling + self-distillation"
    signal = "hidden voxels; a teacher's outputs for hidden patches and for another view"
    citation = (
        "Jiang et al., Self-supervised 3D anatomy segmentation using SMIT, MICCAI 2022, "
        "arXiv 2205.10342"
    )
    smallest_batch = 4  # with 2 the targets became one prototype within 200 steps
    separating = ("itd", "mpd")
    Config = SMITConfig
    config: SMITConfig

    def __init__(self, encoder: Swin, config: SMITConfig) -> None:
        encoder = masked_encoder(encoder, config)
        patch = config.patch_map if config.w_mpd > 0 else None
        super().__init__(
            EncoderWithHeads(
                encoder, config, pooled=(IMAGE_MAP,), image=config.w_itd > 0, patch=patch
            ),
            config,
        )
        self.image_centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)
        self.decoder = voxel_decoder(encoder, config) if config.w_mip > 0 else None
        self.segmenter = None
        if config.w_parcels > 0:
            self.segmenter = ParcelDecoder(config.parcels_decoder, encoder, config.classes)
        encoder.freeze_unread(self._read_maps())

    @property
    def encoder(self) -> Swin:
        """The student where a decoder is trained with it: the two belong together."""
        return super().encoder if self.network_decoder is None else self.student.encoder

    @property
    def network_decoder(self) -> PretrainedDecoder | None:
        decoder = self.decoder if self.segmenter is None else self.segmenter
        return decoder if isinstance(decoder, PretrainedDecoder) else None

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image" [2 B 1 *crop], "hidden_blocks" Bool [2 B *blocks], "selected" Bool
        [2 B *tokens], "offset" [2 B dims]}.

        "selected": the hidden patch tokens that the patch heads look at. `regions` [B 1 *region].
        With `visible_only` also "visible" int64 [2 B m], the blocks that are computed.
        """
        c = self.config
        block = c.mask_block.along(regions.ndim - 2)
        image, offset = self._cut_twice(regions, generators, within)
        twice = [*generators] * 2
        hidden = draw_masks(image, block, c.mask_ratio, c.mask_air, twice)
        selected = repeat_blocks(hidden, tuple(side // c.patch_stride for side in block))
        if c.patch_tokens:
            draws = uniform(tuple(selected.shape[1:]), twice, image.device)
            selected = keep_at_most(selected, c.patch_tokens, draws)
        both = {"image": image, "hidden_blocks": hidden, "selected": selected, "offset": offset}
        if c.visible_only:
            both["visible"] = draw_visible(hidden, image, block, c.mask_ratio, twice)
        return {name: value.unflatten(0, (2, -1)) for name, value in both.items()}

    def _cut_twice(
        self, regions: Tensor, generators: Sequence[torch.Generator], within: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Two cuts of each region [2B 1 *crop] and their offsets [2B dims]: the first views of all
        scans, then the second ones, so that a batch of views needs no copy.
        """
        size = tuple(regions.shape[2:])
        crop, windows, pairs = crop_size(size), [], []
        for generator, own in zip(generators, per_scan(within, len(regions)), strict=True):
            windows.append(draw_window(self.config.window_jitter, generator, self.ranges))
            pairs.append([draw_offset(size, crop, generator, own) for _ in range(2)])
        offsets = [pair[view] for view in range(2) for pair in pairs]
        shown = [*apply_windows(regions, windows)] * 2
        crops = [cut(region, offset, crop) for region, offset in zip(shown, offsets, strict=True)]
        return torch.stack(crops), to_device(torch.tensor(offsets), regions.device)

    def loss(self, views: dict[str, Tensor]) -> Step:
        config = self.config
        image, hidden, visible = self._hidden(views)
        taught, selected = self._taught(views)
        shown, wanted = shown_to_encoder(hidden, visible, config), self._decoded()
        student = self.student(image, shown, selected, wanted)
        losses = {}
        if self.decoder is not None:
            losses["mip"] = self._mip(self.decoder, student.maps, image, hidden)
        distilled, monitored = self._distil(student, taught, selected)
        losses |= distilled
        if self.segmenter is not None:
            first, parcels = views["image"][0], views["parcels"][0]
            maps = self.student.encoder(first)
            losses["parcels"], monitored["accuracy"] = self.segmenter.loss(maps, first, parcels)
        losses["total"] = weighted_total(losses, config)
        return Step(losses, monitored)

    def _distil(
        self, student: DistillationOutput, taught: Tensor, selected: SelectedTokens
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses that need the teacher, and what is monitored. Without such losses nobody reads
        the teacher, so it is not computed, and the student's embeddings are monitored.
        """
        if student.image is None and student.patch is None:
            return {}, {"embedding": student.embedding.detach()}
        teacher = self.teacher(taught, None, selected)
        losses, monitored = {}, {"embedding": teacher.embedding}
        if student.image is not None:
            losses["itd"], monitored["teacher_image"] = self._itd(student.image, teacher.image)
        if student.patch is not None:
            losses["mpd"], monitored["teacher_patch"] = self._mpd(
                student.patch, teacher.patch, selected
            )
        return losses, monitored

    def _taught(self, views: dict[str, Tensor]) -> tuple[Tensor, SelectedTokens]:
        """The teacher's input, and its patch tokens that are compared. Both views are drawn alike,
        so a teacher of one view may always see the first.
        """
        names, count = ("image", "selected"), self.config.teacher_views
        taught, marked = (views[name][:count].flatten(0, 1) for name in names)
        most = self._most(views["hidden_blocks"][0, 0].numel(), marked[0].numel())
        return taught, select_tokens(marked, len(taught) * most)

    def _mip(
        self, decoder: nn.Module, maps: Sequence[Tensor | None], image: Tensor, hidden: Tensor
    ) -> Tensor:
        """Hidden voxels of the images [N 1 *crop]."""
        covered = on_voxels(hidden, self.config)
        return masked_l1(decoder(maps, image, covered), image, covered, self.config.smooth_l1)

    def _itd(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The whole: view 1 predicts the target of view 2. Logits [N K] -> loss, target [N K]."""
        target = self.image_centre.sharpen(teacher, self.teacher_temperature())
        loss = cross_view(
            student.unflatten(0, (2, -1)),
            target.unflatten(0, (self.config.teacher_views, -1)),
            self.config.student_temperature,
        )
        return loss, target

    def _mpd(
        self, student: Tensor, teacher: Tensor, selected: SelectedTokens
    ) -> tuple[Tensor, Tensor]:
        """Hidden patches: the student predicts the teacher's target, who sees them. As `_itd`."""
        temperature = self.teacher_temperature(delay=self.config.temperature_warmup)
        target = self.patch_centre.sharpen(teacher, temperature, selected.counts)
        errors = soft_cross_entropy(student, target, self.config.student_temperature)
        return selected.mean(errors), selected.only(target)

    def _decoded(self) -> tuple[int, ...]:
        """The maps from which voxels are predicted."""
        return () if self.decoder is None else self.decoder.maps

    def _read_maps(self) -> set[int]:
        """The numbers of the student's maps from which a gradient comes."""
        if self.segmenter is not None:
            return set(ALL)
        image = {IMAGE_MAP} if self.config.w_itd > 0 else set()
        patch = {self.config.patch_map} if self.config.w_mpd > 0 else set()
        return {*self._decoded(), *image, *patch}

    def _most(self, blocks: int, tokens: int) -> int:
        """How many of a view's patch tokens are selected at most."""
        hidden = self.config.most_hidden(blocks) * (tokens // blocks)
        return min(hidden, self.config.patch_tokens or hidden)

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        config, (image, hidden, visible) = self.config, self._hidden(views)
        covered = on_voxels(hidden, config)
        shown = {"teacher sees": image, "student sees": as_seen(image, hidden, visible, config)}
        if self.decoder is not None:
            shown_student = shown_to_encoder(hidden, visible, config)
            maps = self.student.encoder(image, shown_student, self._decoded())
            predicted = self.decoder(maps, image, covered)
            shown["predicted"] = torch.where(covered, predicted[-1].float(), image)
        return shown

    @staticmethod
    def _hidden(views: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, hidden blocks and, where there are any, visible ones, as one batch of views."""
        image, hidden = views["image"].flatten(0, 1), views["hidden_blocks"].flatten(0, 1)
        return image, hidden, views["visible"].flatten(0, 1) if "visible" in views else None
