"""nnU-Net's own decoder, of its own blocks, on the encoder's maps and the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nnssl.network.layers import DatasetNorm, Heads, cut, groups_of
from nnssl.types import Shape

FINE = 3  # levels with instance norm, at strides 1, 2 and 4; those below have too few voxels for it
WIDEST = 320  # channels, as nnU-Net's


class NNUNetDecoder(nn.Module):
    """Isensee et al. 2021, as
    `dynamic_network_architectures.building_blocks.unet_decoder.UNetDecoder`.

    A transposed convolution, concatenation with the skip, then two blocks of convolution, norm and
    LeakyReLU, of the classes that nnU-Net's default network is made of and with its initialisation.
    It differs where the encoder does: skips are the image and the five maps, each standardised by
    the moments of the training set and passed through one such block (two for the image), and odd
    sizes are cut. As in nnU-Net, a kernel is 1 along an axis until that is halved: only below are
    neighbours there near.

    widths: channels at strides 1 to 32. None: `default_widths`.
    """

    def __init__(
        self,
        steps: tuple[Shape, ...],
        image_channels: int,
        channels: tuple[int, ...],
        classes: int,
        deep_supervision: bool,
        widths: tuple[int, ...] | None = None,
    ) -> None:
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        super().__init__()
        self.deep_supervision = deep_supervision
        widths = widths or self.default_widths(channels)
        if len(widths) != len(steps) + 1:
            raise ValueError(
                f"the nnunet decoder takes {len(steps) + 1} widths, at strides 1 to 32, got "
                f"{widths}"
            )
        self.norms = nn.ModuleList(DatasetNorm(width) for width in channels)
        levels = _levels(steps, widths)
        maps = zip(levels, (image_channels, *channels), strict=True)
        self.skips = nn.ModuleList(
            level.blocks(1 if level.number else 2, inputs) for level, inputs in maps
        )
        self.transpconvs = nn.ModuleList(
            _transposed(below, width, step)
            for below, width, step in zip(widths[1:], widths, steps, strict=False)
        )
        self.stages = nn.ModuleList(level.blocks(2, 2 * level.width) for level in levels[:-1])
        self.apply(InitWeights_He(1e-2))
        self.heads = Heads(tuple(widths[: len(widths) - 2]), classes, deep_supervision)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """[B C *spatial] and the encoder's maps to logits [B classes *spatial], or several."""
        maps = [norm(each) for norm, each in zip(self.norms, maps, strict=True)]
        *skips, x = [block(each) for block, each in zip(self.skips, (image, *maps), strict=True)]
        decoded = []
        for level in reversed(range(len(skips))):
            raised = cut(self.transpconvs[level](x), skips[level].shape[2:])
            x = self.stages[level](torch.cat([raised, skips[level]], dim=1))
            decoded.insert(0, x)
        return self.heads(decoded[: len(self.heads.seg_layers)], self.deep_supervision)

    @staticmethod
    def default_widths(channels: tuple[int, ...]) -> tuple[int, ...]:
        """32, then the encoder's channels at strides 2 to 32, 320 at most."""
        return (32, *(min(width, WIDEST) for width in channels))


class Level(NamedTuple):
    """What the blocks at one stride have in common: channels and kernel by axis."""

    number: int
    width: int
    kernel: list[int]

    def blocks(self, count: int, inputs: int) -> nn.Module:
        """So many of convolution, norm and LeakyReLU, from so many channels."""
        from dynamic_network_architectures.building_blocks.simple_conv_blocks import (
            StackedConvBlocks,
        )

        norm, norm_options = self._norm()
        return StackedConvBlocks(
            count,
            nn.Conv2d if len(self.kernel) == 2 else nn.Conv3d,
            inputs,
            self.width,
            self.kernel,
            1,
            conv_bias=False,
            norm_op=norm,  # pyright: ignore[reportArgumentType] declared as a class, only called
            norm_op_kwargs=norm_options,
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )

    def _norm(self) -> tuple[Callable[..., nn.Module], dict]:
        """Makes the norm of so many channels, and its options."""
        from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm

        if self.number >= FINE:
            return _group_norm, {}
        return get_matching_instancenorm(dimension=len(self.kernel)), {"eps": 1e-5, "affine": True}


def _levels(steps: tuple[Shape, ...], widths: tuple[int, ...]) -> list[Level]:
    """That of each stride."""
    pairs = zip(widths, _kernels(steps), strict=True)
    return [Level(number, *own) for number, own in enumerate(pairs)]


def _kernels(steps: tuple[Shape, ...]) -> list[list[int]]:
    """The kernel at each stride; at the deepest one nothing is left to halve."""
    kernels = [[3 if s > 1 else 1 for s in step] for step in steps]
    return [*kernels, [3] * len(steps[0])]


def _transposed(inputs: int, outputs: int, step: Shape) -> nn.Module:
    """The convolution that upsamples by `step`."""
    from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp

    # declared as the base, which takes more
    kind = cast("Callable[..., nn.Module]", get_matching_convtransp(dimension=len(step)))
    return kind(inputs, outputs, step, step, bias=False)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(channels), channels)
