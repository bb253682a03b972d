"""`nnUNetv2_train ... -tr SwinGradualTrainer`: first the decoder learns, then the encoder from its
top down.
"""

from __future__ import annotations

from nnssl import finetune
from nnssl.trainers.nnssl_swin_ssl import SwinSSLTrainer


class SwinGradualTrainer(SwinSSLTrainer):
    schedule = finetune.Unfreezing

    def start(self) -> list[str]:
        return [*super().start(), finetune.unfreezing(self.recipe)]
