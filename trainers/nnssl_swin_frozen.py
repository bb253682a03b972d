"""`nnUNetv2_train ... -tr SwinFrozenTrainer`: only the decoder is trained; the pretrained encoder
is frozen.
"""

from __future__ import annotations

import torch

from nnssl import finetune
from nnssl.trainers.nnssl_swin import SwinTrainer


class SwinFrozenTrainer(SwinTrainer):
    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, finetune.Schedule]:
        finetune.freeze(finetune.unwrap(self.network))
        return super().configure_optimizers()

    def start(self) -> list[str]:
        return [
            *self.load_pretrained(),
            "Frozen encoder: only the decoder is trained",
        ]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        finetune.unwrap(self.network).encoder.eval()  # no stochastic depth in what does not learn
