"""`nnUNetv2_train ... -tr SwinFrozenTrainer`: only the decoder learns; the pretrained encoder stays
as it is.
"""

from __future__ import annotations

from nnssl import finetune
from nnssl.trainers.nnssl_swin_ssl import SwinSSLTrainer


class SwinFrozenTrainer(SwinSSLTrainer):
    def configure_optimizers(self):
        finetune.freeze(finetune.unwrap(self.network))
        return super().configure_optimizers()

    def start(self) -> list[str]:
        return [*super().start(), "Frozen: the encoder stays as it is, only the decoder learns"]

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        finetune.unwrap(self.network).encoder.eval()  # no stochastic depth in what does not learn
