"""nnU-Net's experiment planner for our network: patch and batch by its memory, strides by the
spacing.

All else is nnU-Net's: target spacing, normalisation, resampling, when there is a 3d_lowres and a
cascade. `-pl` of nnU-Net's commands finds its own planners only; `nnssl_plan` runs this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnssl import checkpoint, files
from nnssl.data.raw_datasets import is_ct_name
from nnssl.encoder.config import SwinConfig
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import (
    DECODER,
    INFO,
    INTENSITIES,
    architecture,
    axes_of,
    encoder_for,
    permute_axes,
)
from nnssl.finetune.plans_data import data_settings, new_identifier
from nnssl.hu import HUPolicy
from nnssl.plans import memory_model
from nnssl.plans.own_configurations import keep_own_configurations
from nnssl.plans.patch import plan_batch, plan_patch
from nnssl.plans.training_memory import labels_of
from nnssl.recipe import RECIPE, Recipe
from nnssl.types import BASE, NAME, Shape, Spacing

# steps whose maps are to have no odd sizes; they hold most of the memory, and the first stage's
# windows fit
FINE = 3


@dataclass(frozen=True)
class PlannedStart:
    """The network that is planned for: its encoder, the HU it was pretrained on, and the plans'
    `pretrain_info`.
    """

    encoder: SwinConfig
    hu: HUPolicy | None = None
    info: dict | None = None

    @property
    def decoder(self) -> str:
        """The decoder that was pretrained with the encoder, or the default one."""
        return ((self.info or {}).get("decoder") or {"name": DECODER})["name"]

    @classmethod
    def of(cls, named: Path | str | None = None, dims: int = 3, is_ct: bool = True) -> PlannedStart:
        """From a checkpoint: `named`, or found as the trainers of configurations of as many `dims`
        find it for images of which a channel `is_ct` or none. Raises NoCheckpointError,
        CheckpointError.
        """
        given = {"checkpoint_path": str(named)} if named else {}
        choice = checkpoint_choice.choose(given, "nnssl_plan -c", dims, is_ct)
        loaded = checkpoint.load(choice.path)
        return cls(
            loaded.encoder_config, loaded.hu, checkpoint_choice.pretrain_info(choice, loaded)
        )


class SwinPlanner(ExperimentPlanner):
    """Plans named `plans_name`; `start` None takes the checkpoint that the trainers would find.

    patch:  instead of the planned one, in the configurations of as many axes.
    writes: whether `plan_experiment` writes the plans, as nnU-Net's commands expect; or only
            returns them, for `nnssl_plan`, which may still refuse what they lead to.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = NAME,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
        start: PlannedStart | None = None,
        decoder: str | None = None,
        patch: Shape | None = None,
        writes: bool = True,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,  # pyright: ignore[reportArgumentType] its default is None
            suppress_transpose,
        )
        is_ct = any(map(is_ct_name, self._channels.values()))
        self.start, self.patch = start or PlannedStart.of(is_ct=is_ct), patch
        self.decoder = decoder or self.start.decoder
        self.writes = writes

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802 nnU-Net's name
        *args: object, **kwargs: object
    ) -> float:
        """Of the U-Net that nnU-Net would plan: nothing, so that it does not look for a patch of
        its own.
        """
        return 1

    def get_plans_for_configuration(
        self,
        spacing: np.ndarray | tuple[float, ...] | list[float],
        median_shape: np.ndarray | tuple[int, ...],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        image = tuple(float(n) for n in median_shape[: len(spacing)])
        patch = self._patch(plan, tuple(spacing), image)
        most = approximate_n_voxels_dataset * self.max_dataset_covered / prod(patch)
        plan["patch_size"] = list(patch)
        plan["batch_size"] = plan_batch(patch, self._peak(plan), self._gb, most)
        plan["architecture"] = self._architecture(plan)
        plan["data_identifier"] = self._data_identifier(plan, data_identifier)
        return plan

    def _architecture(self, plan: dict) -> dict:
        start = self.start
        return architecture(self._top, plan, start.encoder, self.decoder, start.hu)

    def _patch(self, plan: dict, spacing: Spacing, image: tuple[float, ...]) -> Shape:
        """The patch given for this number of axes, or the planned one."""
        if self.patch and len(self.patch) == len(spacing):
            return self.patch
        return plan_patch(spacing, image, self._peak(plan), self._grain(plan), self._gb)

    def save_plans(self, plans: dict) -> None:
        """Complete `plans`, in place, and write them where the planner `writes`. As nnU-Net's own,
        it keeps a user's configurations. Raises ValueError where one is based on a configuration
        that is no longer planned.
        """
        plans |= self._about_all()
        recursive_fix_for_json_export(plans)
        if self.writes:
            path = self._path_of(self.plans_identifier)
            keep_own_configurations(plans, files.read_json(path) if path.is_file() else {})
            files.write_json(path, plans)

    @property
    def _gb(self) -> float:
        """The target less what the estimate may be too low by."""
        return self.UNet_vram_target_GB / (1 + memory_model.TOLERANCE)

    def _about_all(self) -> dict:
        """The entries of the plans that are ours."""
        return {RECIPE: Recipe().to_dict(), **({INFO: self.start.info} if self.start.info else {})}

    @cached_property
    def _top(self) -> dict:
        """The plans' entries for all configurations that a network depends on."""
        return {
            "transpose_forward": [int(axis) for axis in self.determine_transpose()[0]],
            INTENSITIES: self.dataset_fingerprint[INTENSITIES],
            **self._about_all(),
        }

    def _peak(self, plan: dict) -> Callable[[Shape, int], float]:
        """`peak_bytes` of the network in a configuration, by patch and batch."""
        channels, classes = len(self._channels), self._classes

        def peak(patch: Shape, batch: int) -> float:
            config = self._encoder(plan, patch)
            return memory_model.peak_bytes(
                replace(config, in_channels=channels), self.decoder, patch, batch, classes
            )

        return peak

    def _grain(self, plan: dict) -> Callable[[Shape], Shape]:
        """What the sides of a patch are multiples of, so that the fine maps have no odd sizes."""

        def grain(patch: Shape) -> Shape:
            steps = map(self._encoder(plan, patch).step, range(FINE))
            return tuple(map(prod, zip(*steps, strict=True)))

        return grain

    def _encoder(self, plan: dict, patch: Shape) -> SwinConfig:
        """In the configuration's own axes."""
        config = encoder_for(self._top, plan | {"patch_size": list(patch)}, self.start.encoder)
        return replace(config, steps=permute_axes(config.steps, axes_of(self._top, len(patch))))

    @property
    def _channels(self) -> dict:
        return self.dataset_json.get("channel_names") or self.dataset_json["modality"]

    @cached_property
    def _classes(self) -> int:
        return labels_of(self.dataset_json).num_segmentation_heads

    def _data_identifier(self, plan: dict, own: str) -> str:
        """That of nnU-Net's own plans, or of those of this name, where they would preprocess the
        same. Else a new one, which changes with the data: plans may be made again at another
        spacing.
        """
        settings = data_settings(self._top, plan)
        recursive_fix_for_json_export(settings)
        name = own.removeprefix(f"{self.plans_identifier}_")
        for plans in self._earlier_plans:
            found = plans["configurations"].get(name)
            if found is not None and data_settings(plans, found) == settings:
                return found["data_identifier"]
        return new_identifier(self.plans_identifier, name, settings)

    @cached_property
    def _earlier_plans(self) -> list[dict]:
        """Those that may have such data already; nnU-Net tries many spacings for 3d_lowres."""
        paths = map(self._path_of, (BASE, self.plans_identifier))
        return [files.read_json(path) for path in paths if path.is_file()]

    def _path_of(self, plans_name: str) -> Path:
        return Path(nnUNet_preprocessed, self.dataset_name, f"{plans_name}.json")
