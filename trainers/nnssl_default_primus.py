"""`nnUNetv2_train ... -tr DefaultPrimusMTrainer` (S, B, M, L): nnU-Net's Primus (Wald et al. 2025,
arXiv 2503.01835) with its optimiser, as long as our trainers train.
"""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import (
    nnUNet_Primus_B_Trainer,
    nnUNet_Primus_L_Trainer,
    nnUNet_Primus_M_Trainer,
    nnUNet_Primus_S_Trainer,
)

from nnssl import finetune
from nnssl.trainers.nnssl_default_network import DefaultNetworkTrainer


class PrimusTrainer(DefaultNetworkTrainer):
    """The base of all sizes."""

    knows_our_plans = True  # it takes their patch and batch alone

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net's own signature
    ) -> None:
        finetune.round_patch(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.warmup_duration_whole_net = max(1, self.num_epochs // 20)  # of 1000 nnU-Net's own 50

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        # not Primus's own, which since PyTorch 2.6 cannot read the files of its own training
        nnUNetTrainer.load_checkpoint(self, filename_or_checkpoint)
        if self.current_epoch >= self.warmup_duration_whole_net:
            self.optimizer, self.lr_scheduler = self.configure_optimizers(
                "train"  # pyright: ignore[reportCallIssue] of Primus, the base of our subclasses
            )


class DefaultPrimusSTrainer(PrimusTrainer, nnUNet_Primus_S_Trainer):
    pass


class DefaultPrimusBTrainer(PrimusTrainer, nnUNet_Primus_B_Trainer):
    pass


class DefaultPrimusMTrainer(PrimusTrainer, nnUNet_Primus_M_Trainer):
    pass


class DefaultPrimusLTrainer(PrimusTrainer, nnUNet_Primus_L_Trainer):
    pass
