"""The building blocks of the decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.types import Shape

# A GPU's matrix units take rows of bf16 and fp16 whose length is a multiple of 16 bytes.
ALIGNED = 8
HEADS = ".seg_layers."  # in the names of the layers that give the logits, and of no others


def conv(dims: int, inputs: int, outputs: int) -> nn.Conv2d | nn.Conv3d:
    """3^d, same size out as in."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(inputs, outputs, 3, padding=1, bias=False)


class Pointwise(nn.Linear):
    """A convolution of one voxel, as the matrix product over channels-last maps that it is."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B C *spatial] and [outputs C] to [B outputs *spatial]."""
    product = aligned_linear if x.is_cuda else F.linear
    return product(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def aligned_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, computed with outputs that are never used, up to a multiple of `ALIGNED`."""
    if not (spare := -len(weight) % ALIGNED):
        return F.linear(x, weight, bias)
    weight = F.pad(weight, (0, 0, 0, spare))
    bias = None if bias is None else F.pad(bias, (0, spare))
    return F.linear(x, weight, bias)[..., :-spare]


def upsampling(step: Shape, inputs: int, outputs: int) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """`step` times the size out, by axis."""
    kind = nn.ConvTranspose2d if len(step) == 2 else nn.ConvTranspose3d
    # PyTorch declares kernels of a known number of axes
    make = cast("Callable[..., nn.ConvTranspose2d | nn.ConvTranspose3d]", kind)
    return make(inputs, outputs, step, stride=step, bias=False)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] as it is combined with `x` [B C *spatial]."""
    return values.view(-1, *[1] * (x.ndim - 2))


def halving_weights(outputs: int) -> list[float]:
    """1, 1/2, 1/4, ...: what nnU-Net's deep supervision counts of each coarser output."""
    return [0.5**level for level in range(outputs)]


def cut(x: Tensor, size: Shape) -> Tensor:
    """The first voxels of [B C *larger] that make [B C *size]."""
    return x[(..., *(slice(0, n) for n in size))]


def groups_of(channels: int) -> int:
    """Groups of 16 channels, or the nearest larger ones that divide them."""
    return next(n for n in range(max(1, channels // 16), 0, -1) if channels % n == 0)


class DatasetNorm(nn.Module):
    """(x - mean) / std by channel, of the dataset and not of the patch; buffers, set before a
    training from labels. A pretraining leaves them at 0 and 1, and so does what continues it.

    So what distinguishes one patch from another stays, such as where in the body it lies, and what
    is common to all goes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B C *spatial] to the same shape."""
        return (x - by_channel(self.mean, x)) / by_channel(self.std, x)


class Heads(nn.Module):
    """One pointwise convolution to logits per output size.

    All heads always exist, so that the state_dict is the same with and without deep supervision.
    Without it the lower ones take no gradient, since DDP refuses parameters that get none.
    """

    def __init__(self, widths: tuple[int, ...], classes: int, deep_supervision: bool) -> None:
        super().__init__()
        # nnU-Net's -pretrained_weights leaves out what has this (HEADS) in its name
        self.seg_layers = nn.ModuleList(Pointwise(width, classes) for width in widths)
        self.seg_layers[1:].requires_grad_(deep_supervision)

    def forward(self, maps: list[Tensor], all_of_them: bool) -> Tensor | list[Tensor]:
        """`maps`, finest first, to logits, finest first; or to the finest logits alone."""
        if not all_of_them:
            return self.seg_layers[0](maps[0])
        return [head(x) for head, x in zip(self.seg_layers, maps, strict=True)]
