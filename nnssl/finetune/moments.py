"""Statistics of the training set for the decoder, before its first step: moments of maps,
frequencies of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from nnssl.network.layers import DatasetNorm, Heads, Pointwise
from nnssl.network.swin_unetr import SwinUNETR

PATCHES = 32  # whose maps are measured
CONSTANT = 1e-3  # std of a channel that varies less
FOREGROUND = 0.01  # of the voxels, all classes together: what the heads believe at first


def needs_moments(network: SwinUNETR, info: Mapping) -> bool:
    """Not where the decoder was pretrained: it learnt with the maps as they are. `info`: the plans'
    `pretrain_info`.
    """
    return "decoder_matched" not in info and bool(_norms(network))


def _norms(network: SwinUNETR) -> list[DatasetNorm]:
    return [part for part in network.decoder.modules() if isinstance(part, DatasetNorm)]


@torch.no_grad()
def calibrate_norms(network: SwinUNETR, images: Iterable[Tensor]) -> None:
    """Set the moments of the decoder's `DatasetNorm`s from patches [B C *spatial], as the encoder
    sees them now.

    The pass is in single precision and without stochastic depth. The network's mode is as before.
    """
    training = network.training
    network.eval()
    moments = _moments(network, images)
    network.train(training)
    for norm, (mean, square) in zip(_norms(network), moments, strict=True):
        norm.mean.copy_(mean)
        norm.std.copy_(_std(mean, square))


def _std(mean: Tensor, square: Tensor) -> Tensor:
    """From the means of values and squares, by channel; not below that of a constant."""
    return (square - mean.square()).clamp_min(0).sqrt().clamp_min(CONSTANT)


def _moments(network: SwinUNETR, images: Iterable[Tensor]) -> list[Tensor]:
    """[2 C] per map: the means of its channels and of their squares, each image weighing the
    same.
    """
    sums: list[Tensor] = []
    count = 0
    for image in images:
        _, maps = network.encode(image)
        found = [_mean_and_square(each) * len(image) for each in maps]
        sums = [*map(add, sums, found)] if sums else found
        count += len(image)
    return [both / count for both in sums]


def _mean_and_square(x: Tensor) -> Tensor:
    x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
    rows = x.double().movedim(1, -1).flatten(0, -2)
    return torch.stack([rows.mean(0), rows.square().mean(0)])


@torch.no_grad()
def start_heads(network: SwinUNETR, regions: bool) -> None:
    """The biases that make every voxel background at first, but for FOREGROUND: else the first
    steps go to that.

    regions: the logits are of overlapping regions (sigmoid), and there is none of the background.
    """
    for head in _segmentation_heads(network.decoder):
        if regions:
            head.bias.fill_(log(FOREGROUND / (1 - FOREGROUND)))
        else:
            _start_classes(head.bias)


def _start_classes(bias: Tensor) -> None:
    """The logarithms of the frequencies; class 0 is the background."""
    foreground_classes = max(1, len(bias) - 1)
    bias.fill_(log(FOREGROUND / foreground_classes))
    bias[0] = log(1 - FOREGROUND)


def _segmentation_heads(decoder: nn.Module) -> list[Pointwise]:
    heads = cast("Heads", decoder.heads)  # which every decoder has
    return [cast("Pointwise", head) for head in heads.seg_layers]
