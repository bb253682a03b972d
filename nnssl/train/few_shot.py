"""A small decoder on frozen maps, trained for a fixed number of steps on a few labelled crops.

It is the second classifier of the probe (`nnssl.train.probe`): where the linear one reads each
voxel by itself, this one may combine neighbours and stages, as the decoder of a fine-tuning does.
Maps are standardised by channel, lifted to one width, and joined from coarse to fine; the output is
at the finest map's stride and interpolated to the voxels. It does not see the image. Two decoders
are averaged: the Dice of one varied by 0.04 to 0.06 with its first weights. These and the order of
the crops are drawn from fixed seeds, and no global random generator is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.modules.schedules import cosine
from nnssl.network.layers import DatasetNorm, Pointwise, conv, cut
from nnssl.types import Shape

STEPS = 100
SEEDS = (0, 1)  # one decoder each: of its first weights and of the order of the crops
WIDTH = 16
RATE, DECAY = 1e-2, 1e-2  # of AdamW; the rate falls to 0 along a cosine
BATCH_VOXELS, MOST_CROPS = 2 * 48**3, 16  # of a step
STD = 1e-3  # channels that vary less are constants


class Decoder(nn.Module):
    """Maps [B C *grid], finest first, to logits [B classes *the finest grid]."""

    def __init__(self, channels: Sequence[int], classes: int, dims: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(DatasetNorm(count) for count in channels)
        self.lifts = nn.ModuleList(Pointwise(count, WIDTH) for count in channels)
        self.mixes = nn.ModuleList(conv(dims, WIDTH, WIDTH) for _ in channels)
        self.head = Pointwise(WIDTH, classes)
        self.mode = "trilinear" if dims == 3 else "bilinear"

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = None
        for level in reversed(range(len(maps))):
            y = self.lifts[level](self.norms[level](maps[level]))
            if x is not None:
                y = y + self.upsampled_to(x, y.shape[2:])
            x = y + F.relu(self.mixes[level](F.relu(y)))
        return self.head(x)

    def upsampled_to(self, x: Tensor, grid: Shape) -> Tensor:
        step = [math.ceil(n / m) for n, m in zip(grid, x.shape[2:], strict=True)]
        return cut(self.upsampled(x, step), grid)

    def upsampled(self, x: Tensor, step: Sequence[int]) -> Tensor:
        scale = [float(n) for n in step]
        return F.interpolate(x, scale_factor=scale, mode=self.mode, align_corners=False)

    def everywhere(self, maps: Sequence[Tensor], stride: int, size: Shape) -> Tensor:
        """The probabilities at every voxel [B classes *size]; `stride`: of the finest map."""
        logits = cut(self.upsampled(self(maps), [stride] * len(size)), size)
        return logits.softmax(dim=1)


def fit(
    maps: Sequence[Sequence[Tensor]],
    labels: Sequence[Tensor],
    stride: int,
    classes: int,
    device: torch.device,
    steps: int,
    seed: int = 0,
) -> Decoder:
    """The decoder that `steps` steps have trained, in evaluation mode.

    maps:   of each crop, [C *grid] of every stage, finest first; kept where they are, in any type.
    labels: of each crop, int [*crop], negative where a voxel counts neither way.
    """
    targets = [_fractions(of_crop, stride, classes) for of_crop in labels]
    decoder = _initialised(maps, targets, seed).to(device)
    crops = max(1, min(BATCH_VOXELS // labels[0].numel(), MOST_CROPS, len(maps)))
    order = _crop_order(len(maps), steps * crops, seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=DECAY)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, steps)
            chosen = order[step * crops : (step + 1) * crops]
            target = torch.stack([targets[i] for i in chosen]).to(device)
            loss = _loss(decoder(_batch(maps, chosen, device)).float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return decoder.eval()


def _initialised(maps: Sequence[Sequence[Tensor]], targets: Sequence[Tensor], seed: int) -> Decoder:
    """Random weights of `seed`, the maps' moments, and a bias for the classes' frequencies."""
    channels = [tokens.shape[0] for tokens in maps[0]]
    classes, dims = targets[0].shape[0], targets[0].ndim - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(channels, classes, dims)
    for level, norm in enumerate(decoder.norms):
        _set_moments(cast("DatasetNorm", norm), [of_crop[level] for of_crop in maps])
    with torch.no_grad():
        decoder.head.bias.copy_(_log_frequencies(targets))
    return decoder


def _log_frequencies(targets: Sequence[Tensor]) -> Tensor:
    """[classes], of all crops together."""
    counts = _sum(target.flatten(1) for target in targets)
    return (counts / counts.sum()).clamp(min=1e-4).log()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy and 1 - Dice over the batch, as nnU-Net; target [B classes *grid] in
    fractions.
    """
    log, counted = logits.log_softmax(dim=1), target.sum(dim=1)
    entropy = -(target * log).sum() / counted.sum().clamp(min=1)
    return entropy + 1 - _mean_dice(log.exp() * counted[:, None], target)


def _mean_dice(probability: Tensor, target: Tensor) -> Tensor:
    """Over the classes of the batch but the first."""
    axes = [0, *range(2, target.ndim)]
    hit, both = (probability * target).sum(axes), (probability + target).sum(axes)
    there = (target.sum(axes) > 0)[1:]
    dice = (2 * hit / both.clamp(min=1e-5))[1:]
    return (dice * there).sum() / there.sum().clamp(min=1)


def _fractions(labels: Tensor, stride: int, classes: int) -> Tensor:
    """int [*crop] -> which fraction of each of the finest map's cells each class has [classes
    *grid].
    """
    pool = F.avg_pool2d if labels.ndim == 2 else F.avg_pool3d
    one_hot = torch.stack([labels == k for k in range(classes)]).float()
    return pool(one_hot[None], stride, ceil_mode=True)[0]


def _set_moments(norm: DatasetNorm, maps: Sequence[Tensor]) -> None:
    """Mean and std by channel over all crops."""
    flat = [tokens.flatten(1).double() for tokens in maps]
    count = sum(one.shape[1] for one in flat)
    mean = _sum(flat) / count
    square = _sum((one - mean[:, None]).square() for one in flat) / count
    norm.mean.copy_(mean)
    norm.std.copy_(square.sqrt().clamp(min=STD))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Parts [C n] -> [C], over all of them."""
    return reduce(add, (part.sum(1) for part in parts))


def _crop_order(crops: int, count: int, seed: int) -> list[int]:
    """`count` numbers of crops: each as often as the others, in a drawn order."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(crops, generator=generator) for _ in range(-(-count // crops))]
    return torch.cat(rounds)[:count].tolist()


def _batch(
    maps: Sequence[Sequence[Tensor]], chosen: Sequence[int], device: torch.device
) -> list[Tensor]:
    """The maps of the chosen crops, [B C *grid] of every stage."""
    levels = zip(*(maps[i] for i in chosen), strict=True)
    return [torch.stack(level).to(device).float() for level in levels]


def _rate(step: int, steps: int) -> float:
    """Up within ten steps, then down to 0 along a cosine."""
    return RATE * min(1, (step + 1) / 10) * cosine(1.0, 0.0, step / steps)
