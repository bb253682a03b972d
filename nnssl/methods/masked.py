"""What SimMIM and SMIT share: a decoder of voxels, chosen by the config."""

from __future__ import annotations

from torch import Tensor, nn

from nnssl.encoder.swin import PATCH, Swin
from nnssl.modules.decoders import MultiScaleDecoder
from nnssl.modules.masked import MaskedConfig
from nnssl.network.reconstruction import Reconstruction
from nnssl.views.masking import repeat_blocks

LINEAR = "linear"


def voxel_decoder(encoder: Swin, config: MaskedConfig) -> nn.Module:
    """Maps [five], image [B 1 *size], hidden Bool [B 1 *size] -> predictions [B 1 *size], a list.

    Raises ValueError for an unknown decoder.
    """
    if config.decoder == LINEAR:
        return MultiScaleDecoder(encoder, config.decode_from)
    return Reconstruction(config.decoder, encoder)


def on_tokens(masked: Tensor, config: MaskedConfig) -> Tensor:
    """Hidden blocks Bool [B *blocks] on the encoder's token grid."""
    return repeat_blocks(masked, [side // PATCH for side in config.mask_block.along(masked.ndim - 1)])


def on_voxels(masked: Tensor, config: MaskedConfig) -> Tensor:
    """Hidden blocks Bool [B *blocks] as hidden voxels [B 1 *crop]."""
    return repeat_blocks(masked, config.mask_block.along(masked.ndim - 1)).unsqueeze(1)
