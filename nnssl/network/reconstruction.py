"""Voxels predicted by the decoder of the fine-tuning network, which is so pretrained with its encoder."""

from __future__ import annotations

from torch import Tensor, nn

from nnssl.encoder.swin import Swin
from nnssl.network.decoders import full_options, make_decoder


class Reconstruction(nn.Module):
    """A segmentation decoder with one "class": the intensity. Its skip of the image is masked as well.

    Without the mask the skip would give the answer away. A hidden voxel is 0 there, the mean over the
    body, as a hidden token is the mask token. Only the finest output is used. All but the heads is
    carried over to the fine-tuning (`nnssl.finetune.weights`).

    Raises ValueError for an unknown decoder.
    """

    def __init__(self, decoder: str, encoder: Swin) -> None:
        super().__init__()
        self.options = full_options(decoder)
        self.decoder = make_decoder(self.options, encoder, classes=1, deep_supervision=False)

    def forward(self, maps: list[Tensor], image: Tensor, hidden: Tensor) -> list[Tensor]:
        """The encoder's five maps, the image [B 1 *size] and Bool [B 1 *size] -> one prediction [B 1 *size]."""
        return [self.decoder(image.masked_fill(hidden, 0.0), maps)]
