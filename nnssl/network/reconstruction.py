"""Predictors of hidden voxels, and the fine-tuning network's decoder, trained together with the
encoder.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from nnssl.encoder.config import PATCH
from nnssl.encoder.swin import ALL, Swin
from nnssl.encoder.visible import Visible, mask_at_stride
from nnssl.modules.masked import MaskedConfig
from nnssl.modules.voxel_decoders import MultiScaleDecoder
from nnssl.network.decoders import full_options, make_decoder
from nnssl.network.layers import halving_weights
from nnssl.shapes import ceil_div
from nnssl.views.masking import all_but, repeat_blocks

LINEAR = "linear"


class PretrainedDecoder(nn.Module):
    """`decoder`, whose tensors but the heads' are carried over (`nnssl.finetune.weights`);
    `options` name it.

    Raises ValueError for an unknown decoder.
    """

    maps = ALL  # that are read

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
        predicted = super().forward(maps, image.masked_fill(hidden, 0.0))
        return [cast("Tensor", predicted)]  # without deep supervision it is no list


class ParcelDecoder(PretrainedDecoder):
    """Says of each voxel which of `classes` parcels it lies in, or 0: in none."""

    def __init__(self, decoder: str, encoder: Swin, classes: int) -> None:
        super().__init__(decoder, encoder, 1 + classes, deep_supervision=True)

    def loss(self, maps: list[Tensor], image: Tensor, parcels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy over all outputs, and the fraction of body voxels that are right.

        maps: the encoder's five; image [B C *size]; parcels int [B *size].
        """
        log_p = [_log_probabilities(logits) for logits in self(maps, image)]
        own = [_of_parcels(each, parcels) for each in log_p]
        weights = halving_weights(len(own))
        first, *others = (-weight * each.mean() for weight, each in zip(weights, own, strict=True))
        right = own[0].detach() == log_p[0].detach().amax(dim=-1)
        return sum(others, first) / sum(weights), _fraction_in_body(right, parcels)


def _log_probabilities(logits: Tensor) -> Tensor:
    """[B classes *s] to [B *s classes], the classes of a voxel side by side.

    `F.cross_entropy` would turn the logits around, which lie so already and are the largest tensors
    of a step: a fifth of its time on a CPU.
    """
    return logits.movedim(1, -1).log_softmax(dim=-1, dtype=torch.float32)


def _of_parcels(log_p: Tensor, parcels: Tensor) -> Tensor:
    """[B *s]: of [B *s classes] those of each voxel's own parcel."""
    own = at_size(parcels, log_p.shape[1:-1])
    return log_p.gather(-1, own.unsqueeze(-1)).squeeze(-1)


def _fraction_in_body(right: Tensor, parcels: Tensor) -> Tensor:
    """The fraction of the voxels of some parcel that is `right`."""
    body = (parcels > 0).float()
    return (right * body).sum() / body.sum().clamp(min=1)


def masked_encoder(encoder: Swin, config: MaskedConfig) -> Swin:
    """A copy that hides blocks: behind the patch embedding, or later with `visible_only`."""
    encoder = encoder.copied(maskable=True)
    if config.visible_only:
        mask_at_stride(encoder, config.mask_stride)
    return encoder


def voxel_decoder(encoder: Swin, config: MaskedConfig) -> MultiScaleDecoder | Reconstruction:
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
    block = config.mask_block.along(masked.ndim - 1)
    return repeat_blocks(masked, tuple(side // PATCH for side in block))


def on_voxels(masked: Tensor, config: MaskedConfig) -> Tensor:
    """Hidden blocks Bool [B *blocks] as hidden voxels [B 1 *crop]."""
    return repeat_blocks(masked, config.mask_block.along(masked.ndim - 1)).unsqueeze(1)


def at_size(labels: Tensor, size: torch.Size) -> Tensor:
    """The label at the centre of each token's cell, as nnU-Net reduces its targets: [B *s] ->
    [B *size], where size is s over a stride of the encoder, rounded up.
    """
    for axis, (have, want) in enumerate(zip(labels.shape[1:], size, strict=True), start=1):
        stride = _stride(have, want)
        index = torch.arange(want, device=labels.device) * stride + stride // 2
        labels = labels.index_select(axis, index.clamp(max=have - 1))
    return labels


def _stride(voxels: int, tokens: int) -> int:
    """The power of two by which so many voxels become so many tokens."""
    stride = 1
    while ceil_div([voxels], [stride]) > (tokens,):
        stride *= PATCH
    return stride


def require_known_decoder(config: MaskedConfig) -> None:
    """Raises ValueError for an unknown decoder."""
    if config.decoder != LINEAR:
        full_options(config.decoder)
