"""`nnUNetv2_train ... -tr SwinSSLTrainer`: nnU-Net's training, started from a pretrained Swin
encoder.
"""

from __future__ import annotations

from nnssl.trainers.nnssl_swin import SwinTrainer


class SwinSSLTrainer(SwinTrainer):
    def start(self) -> list[str]:
        return self.load_pretrained()
