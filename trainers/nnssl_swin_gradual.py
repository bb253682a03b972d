"""`nnUNetv2_train ... -tr SwinGradualTrainer`: first the decoder is trained, then the encoder from
its last stage down.
"""

from __future__ import annotations

from nnssl import finetune
from nnssl.trainers.nnssl_swin import SwinTrainer


class SwinGradualTrainer(SwinTrainer):
    schedule = finetune.Unfreezing

    def start(self) -> list[str]:
        return self.load_pretrained()

    def _recipe_line(self) -> str:
        return f"{super()._recipe_line()}\n{finetune.unfreezing(self.recipe)}"
