"""`nnUNetv2_train ... -tr DefaultNetworkTrainer`: nnU-Net's own network and optimiser, as long as
our trainers train.

For comparisons, and the base class of our trainers: of the recipe in the plans it follows epochs,
iterations, the fraction of foreground and mirroring.
"""

from __future__ import annotations

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl import files, finetune
from nnssl.recipe import Recipe


class DefaultNetworkTrainer(nnUNetTrainer):
    # nnU-Net declares them as None as well, which they are where there is nothing to train on
    preprocessed_dataset_folder_base: str
    output_folder: str

    knows_our_plans = False  # whether the plans may name our network; nnU-Net's trainer cannot

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net's own signature
    ) -> None:
        self.recipe = recipe = Recipe.of(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.oversample_foreground_percent = recipe.foreground
        self.num_epochs = recipe.epochs
        self.save_every = max(1, min(50, recipe.epochs // 10))
        self.num_iterations_per_epoch = recipe.iterations
        self.num_val_iterations_per_epoch = recipe.val_iterations
        if self.device.type == "cpu":
            finetune.prepare_cpu()

    def initialize(self) -> None:
        """Raises ValueError where the plans name our network and the trainer trains nnU-Net's."""
        if not self.knows_our_plans:
            finetune.require_nnunets_network(self.plans_manager.plans, self.configuration_name)
        super().initialize()

    def on_train_start(self) -> None:
        """Raises ChangedPlansError before anything is trained on data of other plans."""
        self._require_same_data()
        if self.local_rank == 0:
            files.sweep(self.output_folder)
        super().on_train_start()

    def save_checkpoint(self, filename: str) -> None:
        """Replaces the former file once the new one is whole: nnU-Net overwrites it in place, and a
        kill or a full disk would leave neither. Raises NoRoomError.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        with files.atomic(filename) as path:
            super().save_checkpoint(str(path))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Raises ChangedPlansError before anything is validated on data of other plans."""
        self._require_same_data()
        finetune.stop_broadcasts(self.network)
        super().perform_actual_validation(save_probabilities)

    def _require_same_data(self) -> None:
        finetune.require_same_data(
            Path(self.preprocessed_dataset_folder_base),
            self.plans_manager.plans,
            self.configuration_name,
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802 nnU-Net's name
        self,
    ) -> tuple:
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.recipe.mirror:  # nnU-Net saves the second name with the model, for prediction
            axes = self.inference_allowed_mirroring_axes = None
        return *others, axes
