"""`nnUNetv2_train ... -tr SwinLoRATrainer`: trains the decoder, and the encoder by low-rank
updates.
"""

from __future__ import annotations

import torch

from nnssl import finetune
from nnssl.trainers.nnssl_swin import SwinTrainer


class SwinLoRATrainer(SwinTrainer):
    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, finetune.Schedule]:
        network = finetune.unwrap(self.network)
        finetune.add_lora(network, self.recipe)
        optimizer, schedule = super().configure_optimizers()
        finetune.keep_factors(network, optimizer)
        return optimizer, schedule

    def start(self) -> list[str]:
        network = finetune.unwrap(self.network)
        return [*self.load_pretrained(), finetune.describe_lora(network, self.recipe)]
