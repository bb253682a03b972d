"""What predicts hidden voxels, and the fine-tuning network's decoder, trained together with the
encoder.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from nnssl.encoder.swin import PATCH, Swin
from nnssl.encoder.visible import Visible
from nnssl.modules.decoders import MultiScaleDecoder
from nnssl.modules.masked import MaskedConfig
from nnssl.network.decoders import full_options, make_decoder
from nnssl.views.masking import all_but, repeat_blocks

LINEAR = "linear"


class PretrainedDecoder(nn.Module):
    """`decoder`, whose tensors but the heads' are carried over (`nnssl.finetune.weights`);
    `options` name it.

    Raises ValueError for an unknown decoder.
    """

    def __init__(self, decoder: str, encoder: Swin, outputs: int, deep_supervision: bool) -> None:
        super().__init__()
        self.options = full_options(decoder)
        self.decoder = make_decoder(self.options, encoder, outputs, deep_supervision)

    def forward(self, maps: list[Tensor], image: Tensor) -> Tensor | list[Tensor]:
        """The encoder's five maps and the image [B C *size] -> [B outputs *size], or a list of
        them.
        """
        return self.decoder(image, maps)


class Reconstruction(PretrainedDecoder):
    """One output: the intensity. The skip of the image is masked as well, or it would give the
    answer away.

    A hidden voxel is 0 there, the mean over the body. Only the finest output is used.
    """

    def __init__(self, decoder: str, encoder: Swin) -> None:
        super().__init__(decoder, encoder, outputs=1, deep_supervision=False)

    def forward(self, maps: list[Tensor], image: Tensor, hidden: Tensor) -> list[Tensor]:
        """As above, and Bool [B 1 *size] -> one prediction [B 1 *size]."""
        return [super().forward(maps, image.masked_fill(hidden, 0.0))]


def voxel_decoder(encoder: Swin, config: MaskedConfig) -> nn.Module:
    """Maps [five], image [B 1 *size], hidden Bool [B 1 *size] -> predictions [B 1 *size], a list.

    Raises ValueError for an unknown decoder.
    """
    if config.decoder == LINEAR:
        return MultiScaleDecoder(encoder, config.decode_from)
    return Reconstruction(config.decoder, encoder)


def shown_to_encoder(
    hidden: Tensor, visible: Tensor | None, config: MaskedConfig
) -> Tensor | Visible:
    """What the encoder takes for hidden blocks Bool [B *blocks]: them on its tokens, or `visible`
    [B m].
    """
    if visible is None:
        return on_tokens(hidden, config)
    return Visible(visible, config.mask_block.along(hidden.ndim - 1))


def as_seen(image: Tensor, hidden: Tensor, visible: Tensor | None, config: MaskedConfig) -> Tensor:
    """The image [B 1 *crop] with NaN where the encoder does not look; the rest as above."""
    unseen = hidden if visible is None else all_but(visible, tuple(hidden.shape[1:]))
    return image.masked_fill(on_voxels(unseen, config), math.nan)


def on_tokens(masked: Tensor, config: MaskedConfig) -> Tensor:
    """Hidden blocks Bool [B *blocks] on the encoder's token grid."""
    return repeat_blocks(
        masked, [side // PATCH for side in config.mask_block.along(masked.ndim - 1)]
    )


def on_voxels(masked: Tensor, config: MaskedConfig) -> Tensor:
    """Hidden blocks Bool [B *blocks] as hidden voxels [B 1 *crop]."""
    return repeat_blocks(masked, config.mask_block.along(masked.ndim - 1)).unsqueeze(1)
