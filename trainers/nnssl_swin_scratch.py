"""`nnUNetv2_train ... -tr SwinScratchTrainer`: the same network and recipe as SwinSSLTrainer, from
a random start.
"""

from __future__ import annotations

from nnssl import finetune
from nnssl.trainers.nnssl_swin import SwinTrainer


class SwinScratchTrainer(SwinTrainer):
    random_start = True

    def start(self) -> list[str]:
        return finetune.random_start(self.plans_manager.plans)
