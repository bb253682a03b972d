"""The interface of a self-supervised method. The training loop uses nothing else of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnssl import settings
from nnssl.encoder.swin import Swin
from nnssl.host_memory import to_device
from nnssl.modules.bounds import (
    require_above_zero,
    require_below_one,
    require_not_negative,
    require_part_of_run,
)
from nnssl.modules.running import update_all
from nnssl.network.reconstruction import PretrainedDecoder
from nnssl.types import Shape
from nnssl.views.intensity import STANDARD, Ranges
from nnssl.views.pairs import two_views
from nnssl.views.spatial import crop_size, cut_each, inside, region_size

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Step(NamedTuple):
    """The outputs of a method for one batch.

    losses:    name -> scalar with gradient; the key "total" is what is minimised.
    monitored: name -> detached tensor for the collapse monitors: "embedding" [N d] and, for each
               head of a teacher, "teacher_<head>" probabilities [N K]; scalars go to the log as
               they are, of which "accuracy" (fraction of right answers) is monitored as well.
    """

    losses: dict[str, Tensor]
    monitored: dict[str, Tensor]


@dataclass(frozen=True)
class MethodConfig:
    """The settings that every method has; a method's own fields follow in its subclass."""

    lr: float = 6e-4  # at a total batch of `lr_batch` scans; scaled by sqrt(batch / lr_batch)
    lr_batch: int = 8
    # larger batches do not raise the peak beyond it (Jiang 2022's; more was not tested)
    lr_most: float = 6e-4
    lr_floor: float = 1e-6
    warmup: float = 0.05  # fraction of the steps
    weight_decay: float = 0.05
    beta2: float = 0.999
    clip_norm: float = 1.0  # the longest gradient; 0: of any length
    drop_path: float = 0.1  # of the student; the teacher has none
    # the papers' settings in place of ours, and nothing derived from the data
    published: bool = False

    # What the papers have in place of our defaults; those of the bases hold as well.
    PUBLISHED: ClassVar[dict] = {"lr_most": 1.0, "clip_norm": 0.0}
    # What runs had that did not store it yet, where that is not of the papers.
    BEFORE: ClassVar[dict] = {"clip_norm": 3.0}

    @property
    def parcel_classes(self) -> int:
        """How many parcels (`nnssl.data.parcel_maps`) the method learns from; 0: it needs none."""
        return 0

    def block_sides(self, dims: int) -> Shape:
        """Voxels along each of `dims` axes of the blocks that are hidden, of which a crop holds
        whole ones; 1 where none are. Raises ValueError for another number of axes.
        """
        return (1,) * dims

    def most_hidden(self, blocks: int) -> int:
        """How many of a view's `blocks` are hidden at most."""
        return 0

    @classmethod
    def of_the_papers(cls) -> dict:
        """The fields whose published value is not our default."""
        return {
            k: v
            for base in reversed(cls.__mro__)
            for k, v in vars(base).get("PUBLISHED", {}).items()
        }

    @classmethod
    def stored(cls, values: dict) -> MethodConfig:
        """From a checkpoint's "method_config"; what an earlier version did not know is as it was
        then.
        """
        known = {field.name for field in fields(cls)}
        assumed = {**cls.of_the_papers(), **cls.BEFORE}
        before = {name: value for name, value in assumed.items() if name not in values}
        return cls(**before, **{name: value for name, value in values.items() if name in known})

    @classmethod
    def parse(cls, words: Sequence[str], derived: dict | None = None) -> MethodConfig:
        """From `["mask_ratio=0.6", ...]`; ValueError, listing what is known, for an unknown field
        or a bad value.

        `derived` stands in for our defaults, and with "published=true" the papers' values do.
        """
        values = cls.read(words)
        base = cls.of_the_papers() if values.get("published") else derived or {}
        config = cls(**{**base, **values})
        config.require_rates()
        return config

    def require_rates(self) -> None:
        """Raises ValueError where nothing could be learnt, or nothing scaled."""
        require_above_zero(self, "lr", "lr_batch", "lr_most")
        require_not_negative(self, "weight_decay")
        require_part_of_run(self, "warmup")
        if not 0 <= self.lr_floor <= self.lr:
            raise ValueError(
                f"lr_floor must be from 0 to lr={self.lr:g}, where the rate starts and ends, got "
                f"{self.lr_floor:g}"
            )
        require_below_one(self, "beta2", "drop_path")
        if not self.clip_norm >= 0:
            raise ValueError(
                f"clip_norm must be a length above 0, or 0 for no clipping, got {self.clip_norm}"
            )

    @classmethod
    def read(cls, words: Sequence[str]) -> dict:
        """The fields that `words` name; ValueError as `parse`."""
        return settings.parse_assignments(words, cls)


class Method(nn.Module, ABC):
    """Subclasses: one module each in this folder, and one line in `nnssl.methods.METHODS`."""

    title: ClassVar[str]
    family: ClassVar[str]
    signal: ClassVar[str]  # what it learns from, in a few words
    citation: ClassVar[str]
    smallest_batch: ClassVar[int] = 2  # scans per step below which it does not learn sensibly
    # the loss that compares different scans, which is 0 in a collection of one; "" where none does
    between_scans: ClassVar[str] = ""
    # whether scans are compared with those of the same part of a step alone (`--accumulate`), so
    # that the number of parts changes the loss
    compares_within_part: ClassVar[bool] = False
    # the losses that keep the embeddings of crops apart; where there is none, these may be alike
    separating: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[MethodConfig]]

    config: MethodConfig
    ranges: Ranges = STANDARD  # of its views' intensities; the engine sets those of the plan
    progress: float = 0.0  # fraction of the run that is done, as of the last `after_step`

    @staticmethod
    def region(crop: Shape) -> Shape:
        """The size that is read from a scan to make views of size `crop`; the crop itself by
        default.
        """
        return crop

    @property
    @abstractmethod
    def encoder(self) -> Swin:
        """What is exported: the student, or the teacher where the method's authors fine-tune the
        teacher.
        """

    @property
    def network_decoder(self) -> PretrainedDecoder | None:
        """The fine-tuning network's decoder, where the method trains it: exported beside the
        encoder.
        """
        return None

    @abstractmethod
    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """The views of this method, on the device of `regions` [B 1 *region].

        `within` [B dims 2]: where the scan lies in each region (`nnssl.views.spatial.inside`);
        None: everywhere. A method whose views are parts of the region gives "offset" [views B dims]
        as well: each view's first voxel in the region.

        All randomness comes from `generators`, one per scan (on the CPU), so that a scan's views do
        not depend on which process, batch or micro-batch it falls into.
        """

    def prepare_views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        scans: Int[Tensor, " batch"],
        starts: Int[Tensor, "batch dims"] | None = None,
        sizes: Int[Tensor, "batch dims"] | None = None,
        parcels: Int[Tensor, "batch *region"] | None = None,
    ) -> dict[str, Tensor]:
        """The input of `loss` and `show`: the views, the scan of each region, and its position in
        the scan.

        scans, starts, sizes: "scan" [B], "start" and "size" [B dims] of the samples of
        `nnssl.data.crops.Crops`; without the last two every region is a whole scan.
        parcels: int [B *region], for a method that needs them; zeros where there are none. They are
        cut as the views are, [views B *crop], where these have an "offset".
        Adds "scan" [B], "start" and "size" [B dims]; "offset" [views B dims], where `views` gives
        it, is from here on each view's first voxel in the scan.
        """
        starts, sizes = _scan_extents(regions, starts, sizes)
        within = inside(tuple(regions.shape[2:]), starts, sizes)
        views = self.views(regions, generators, within)
        starts, sizes = (to_device(part, regions.device) for part in (starts, sizes))
        if self.config.parcel_classes:
            labels = to_device(_parcel_labels(regions, parcels), regions.device)
            views["parcels"] = _cut_as_views(labels, views).long()
        if "offset" in views:
            views["offset"] = views["offset"] + starts
        return {**views, "scan": scans, "start": starts, "size": sizes}

    @abstractmethod
    def loss(self, views: dict[str, Tensor]) -> Step:
        """The terms for what `prepare_views` gave."""

    def forward(self, views: dict[str, Tensor]) -> Step:
        """`loss`, under the name that PyTorch's DistributedDataParallel wraps."""
        return self.loss(views)

    def after_step(self, progress: float) -> None:
        """After each optimiser step, `progress` in (0, 1]: move running statistics, and teachers
        and schedules. What it computes of `progress` goes through `nnssl.modules.replay.number`.
        """
        self.progress = progress
        update_all(self)

    @abstractmethod
    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        """Title -> [B 1 *size] for views.png: the input and, where voxels are predicted, the
        prediction.

        Sizes may differ between titles; NaN is drawn as hidden. Called in evaluation mode, without
        gradient.
        """


def _scan_extents(
    regions: Tensor, starts: Tensor | None, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`starts` and `sizes` of `prepare_views` on the CPU; None: of whole scans."""
    region = torch.tensor(regions.shape[2:])
    starts = torch.zeros(len(regions), len(region), dtype=torch.long) if starts is None else starts
    sizes = region.expand(len(regions), -1) if sizes is None else sizes
    return starts.cpu(), sizes.cpu()


def _parcel_labels(regions: Tensor, parcels: Tensor | None) -> Tensor:
    """[B *region], zeros where there are none."""
    if parcels is not None:
        return parcels
    return torch.zeros(len(regions), *regions.shape[2:], dtype=torch.uint8)


def _cut_as_views(labels: Tensor, views: dict[str, Tensor]) -> Tensor:
    """[B *region] -> [views B *crop], where the views have an "offset"."""
    if "offset" not in views:
        return labels
    return cut_each(labels, views["offset"], tuple(views["image"].shape[1 - labels.ndim :]))


def weighted_total(losses: dict[str, Tensor], config: MethodConfig) -> Tensor:
    """The sum of the losses, each times the config's `w_<name>`."""
    terms = (_weighted(value, getattr(config, f"w_{name}")) for name, value in losses.items())
    return reduce(add, terms)


def _weighted(loss: Tensor, weight: float) -> Tensor:
    return loss if weight == 1 else weight * loss


class PairMethod(Method):
    """A method whose views are two random cuts of one region, each with its own flips and
    intensities.
    """

    @staticmethod
    def region(crop: Shape) -> Shape:
        return region_size(crop)

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image": [2 B 1 *crop]}; `regions` [B 1 *region]."""
        crop = crop_size(tuple(regions.shape[2:]))
        return {"image": two_views(regions, generators, crop, self.ranges, within)}

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        first, second = views["image"]
        return {"view 1": first, "view 2": second}
