"""`nnUNetv2_train ... -tr SwinGradualTrainer`: first the decoder learns, then the encoder from its top down."""

from __future__ import annotations

from nnssl import finetune
from nnssl.trainers.nnssl_swin_ssl import SwinSSLTrainer


class SwinGradualTrainer(SwinSSLTrainer):
    def configure_optimizers(self):
        optimizer, _ = super().configure_optimizers()
        return optimizer, finetune.Unfreezing(optimizer, self.recipe)

    def start(self) -> list[str]:
        return [*super().start(), finetune.unfreezing(self.recipe)]
