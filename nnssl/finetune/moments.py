"""What a decoder has to know of the training set before its first step: moments of maps,
frequencies of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log

import torch
from torch import Tensor, nn

from nnssl.network.layers import DatasetNorm, Heads, Pointwise
from nnssl.network.swin_unetr import SwinUNETR

PATCHES = 32  # whose maps are measured
FOREGROUND = 0.01  # of the voxels, all classes together: what the heads believe at first


def needs_moments(network: SwinUNETR, info: Mapping) -> bool:
    """Not where the decoder was pretrained with moments of its own; `info`: the plans'
    `pretrain_info`.
    """
    if "decoder_matched" in info:
        return False
    return any(isinstance(module, DatasetNorm) for module in network.decoder.modules())


@torch.no_grad()
def measure(network: SwinUNETR, images: Iterable[Tensor]) -> None:
    """Set the moments of the decoder's `DatasetNorm`s from patches [B C *spatial], as the encoder
    sees them now.

    The pass is in single precision and without stochastic depth. The network's mode is as before.
    """
    training, count = network.training, 0
    sums: list[Tensor] = []
    network.eval()
    for image in images:
        rows = [each.double().movedim(1, -1).flatten(0, -2) for each in network.encode(image)[1]]
        found = [torch.stack([r.mean(0), r.square().mean(0)]) * len(image) for r in rows]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
        count += len(image)
    network.train(training)
    norms = [part for part in network.decoder.modules() if isinstance(part, DatasetNorm)]
    for norm, both in zip(norms, sums, strict=True):
        mean, square = both / count
        norm.mean.copy_(mean)
        norm.std.copy_((square - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3))


@torch.no_grad()
def start_heads(network: SwinUNETR, regions: bool) -> None:
    """The biases that make every voxel background at first, but for FOREGROUND: else the first
    steps go to that.

    regions: the logits are of overlapping regions (sigmoid), and there is none of the background.
    """
    for head in _heads(network.decoder):
        classes = len(head.bias)
        if regions:
            head.bias.fill_(log(FOREGROUND / (1 - FOREGROUND)))
        else:
            head.bias.fill_(log(FOREGROUND / max(1, classes - 1)))
            head.bias[0] = log(1 - FOREGROUND)


def _heads(decoder: nn.Module) -> list[Pointwise]:
    return [
        head
        for part in decoder.modules()
        if isinstance(part, Heads)
        for head in part.seg_layers
        if isinstance(head, Pointwise)
    ]
