"""The base of the trainers of our network: nnU-Net's training with our recipe. They differ in the
initial weights and in what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl import finetune
from nnssl.cpu.products import by_onednn
from nnssl.finetune import resume
from nnssl.finetune.architecture import INFO
from nnssl.finetune.pretrained_weights import Watch
from nnssl.recipe import Recipe
from nnssl.trainers.nnssl_default_network import DefaultNetworkTrainer

if TYPE_CHECKING:
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper


class SwinTrainer(DefaultNetworkTrainer):
    """The base class: a trainer defines the initial weights by `start`, and may have another
    `schedule`.
    """

    # nnU-Net declares these as None, which they are before they are needed
    num_input_channels: int
    output_folder_base: str
    dataloader_train: Iterator[dict]

    knows_our_plans = True
    random_start = False  # whether plans may name no checkpoint
    schedule: type[finetune.Schedule] = finetune.Schedule

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net's own signature
    ) -> None:
        self.unresolved: ValueError | OSError | None = None
        try:
            finetune.resolve_architecture(plans, configuration)
        # raised when the network is built, unless a saved model brings its own
        except (ValueError, OSError) as error:
            self.unresolved = error
        self.continues, self.continue_training = False, bool(plans.get("continue_training"))
        self.watch: Watch | None = None
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr, self.weight_decay = self.recipe.lr, self.recipe.weight_decay

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        resolved = configuration_manager.configuration
        drop_path = Recipe.of(plans_manager.plans).stochastic_depth
        return finetune.build_network(
            resolved, num_input_channels, num_output_channels, enable_deep_supervision, drop_path
        )

    def initialize(self) -> None:
        finetune.require_architecture(self.configuration_manager.configuration, self.unresolved)
        super().initialize()
        if not self.continues:
            self._start()

    def _start(self) -> None:
        network, info = finetune.unwrap(self.network), self._pretrain_info
        self._refuse_mixed_folds()
        started = self.start()
        finetune.start_heads(network, self.label_manager.has_regions)
        lines = [*started, *self._lines()]
        self.print_to_log_file("\n".join(lines), add_timestamp=False)
        self.watch = Watch(network, info, self.print_to_log_file)

    def _refuse_mixed_folds(self) -> None:
        finetune.refuse_mixed_folds(
            self.output_folder_base, self.fold, self.plans_manager.plans, self.configuration_name
        )

    def _lines(self) -> list[str]:
        """For the log: intensities and recipe."""
        resolved = self.configuration_manager.configuration
        return [*finetune.intensities(resolved, self._pretrain_info), self._recipe_line()]

    def _recipe_line(self) -> str:
        return finetune.describe_recipe(self.recipe, not self.random_start)

    @property
    def _pretrain_info(self) -> dict:
        return self.plans_manager.plans.get(INFO, {})

    def start(self) -> list[str]:
        """Set the weights; lines for the log."""
        raise NotImplementedError("SwinTrainer is only a base class: train with -tr SwinSSLTrainer")

    def load_pretrained(self) -> list[str]:
        """Load the weights that the plans name; lines for the log."""
        labels = finetune.cascaded_labels(
            self.configuration_manager.configuration, self.num_input_channels
        )
        return finetune.load_named_checkpoint(
            finetune.unwrap(self.network), self.plans_manager.plans, labels
        )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        filename_or_checkpoint = self._checkpoint_to_load(filename_or_checkpoint)
        if not self.was_initialized:
            self._restore_plans(filename_or_checkpoint)
            self.continues = True
        if self.watch is not None:
            self.watch.end()
        super().load_checkpoint(filename_or_checkpoint)
        self.average.use()  # as saved; the next epoch of a training continues with the raw weights

    def _checkpoint_to_load(self, chosen: dict | str) -> dict | str:
        if self.continue_training and not self.was_initialized:
            chosen = resume.newest(chosen, self.print_to_log_file)
        return resume.whole(chosen, self.print_to_log_file)

    def _restore_plans(self, checkpoint: dict | str) -> None:
        plans, resolved = self.plans_manager.plans, self.configuration_manager.configuration
        theirs = _checkpoint_content(checkpoint)["init_args"]["plans"]
        finetune.require_data_of_model(plans, self.configuration_name, theirs)
        lines = finetune.describe_restored(plans, theirs)
        self.print_to_log_file("\n".join(lines), add_timestamp=False)
        finetune.restore_plans(plans, resolved, self.configuration_name, theirs)
        self.recipe = Recipe.of(plans)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, finetune.Schedule]:
        network, pretrained = finetune.unwrap(self.network), not self.random_start
        optimizer, schedule = finetune.optimise(
            network, self.recipe, self.device, pretrained, self.schedule
        )
        self.average = finetune.Average(network, optimizer, self.recipe.average)
        return optimizer, schedule

    def on_train_start(self) -> None:
        """Raises OriginError before this run overwrites the plans of other folds, and ValueError
        where it cannot be continued with the recipe of the plans.
        """
        if self.continues:
            finetune.require_moments_loaded(self.optimizer)
            self._refuse_mixed_folds()
            self.print_to_log_file(self._recipe_line(), add_timestamp=False)
        super().on_train_start()
        network = finetune.unwrap(self.network)
        loaded = self.watch is not None and self.watch.loaded  # a decoder with its own moments
        if self.continues or loaded:
            return
        if finetune.needs_moments(network, self._pretrain_info):
            finetune.calibrate_norms(network, self._images(finetune.PATCHES))

    def _images(self, patches: int) -> Iterator[torch.Tensor]:
        """Batches of at least this many patches in total, as the training loads them."""
        for _ in range(-(-patches // self.batch_size)):
            yield next(self.dataloader_train)["data"].to(self.device)

    def on_train_epoch_start(self) -> None:
        self.average.restore()
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        self.average.use()  # until the next epoch: nnU-Net also saves what it has validated
        super().on_validation_epoch_start()

    def save_checkpoint(self, filename: str) -> None:
        validated = self.average.in_use
        self.average.use()
        super().save_checkpoint(filename)
        if not validated:
            self.average.restore()

    def run_training(self) -> None:
        with by_onednn(self.device):
            super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self.average.use()
        with by_onednn(self.device):
            super().perform_actual_validation(save_probabilities)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        return finetune.deep_supervision_scales(self.configuration_manager.configuration)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if scales := self._get_deep_supervision_scales():
            wrapped = cast("DeepSupervisionWrapper", loss)  # where there are several outputs
            wrapped.weight_factors = finetune.deep_supervision_weights(len(scales))
        return loss


def _checkpoint_content(checkpoint: dict | str) -> dict:
    if isinstance(checkpoint, dict):
        return checkpoint
    return torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
