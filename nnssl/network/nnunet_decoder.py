"""nnU-Net's own decoder, of its own blocks, on the encoder's maps and the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

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
    sizes are cut. As in nnU-Net, a kernel is 1 along an axis until that is
    halved: it is that of the map below which tells whether neighbours there are near.

    widths: channels at strides 1 to 32. None: 32, then the encoder's, 320 at most.
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
        from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        super().__init__()
        self.deep_supervision = deep_supervision
        widths = widths or (32, *(min(width, WIDEST) for width in channels))
        if len(widths) != len(steps) + 1:
            raise ValueError(
                f"the nnunet decoder takes {len(steps) + 1} widths, at strides 1 to 32, got "
                f"{widths}"
            )
        self.norms = nn.ModuleList(DatasetNorm(width) for width in channels)
        # Of the level at each stride; at the deepest one nothing is left to halve.
        kernels = [*([3 if s > 1 else 1 for s in step] for step in steps), [3] * len(steps[0])]
        dims, levels = len(steps[0]), range(len(widths))
        self.skips = nn.ModuleList(
            _blocks(2 if level == 0 else 1, dims, inputs, widths[level], kernels[level], level)
            for level, inputs in zip(levels, (image_channels, *channels), strict=True)
        )
        # declared as the base, which takes more
        raising = cast("Callable[..., nn.Module]", get_matching_convtransp(dimension=dims))
        self.transpconvs = nn.ModuleList(
            raising(widths[level + 1], widths[level], step, step, bias=False)
            for level, step in enumerate(steps)
        )
        self.stages = nn.ModuleList(
            _blocks(2, dims, 2 * widths[level], widths[level], kernels[level], level)
            for level in levels[:-1]
        )
        self.apply(InitWeights_He(1e-2))
        self.heads = Heads(tuple(widths[: len(levels) - 2]), classes, deep_supervision)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """[B C *spatial] and the encoder's maps to logits [B classes *spatial], or a list of them."""
        maps = [norm(each) for norm, each in zip(self.norms, maps, strict=True)]
        *skips, x = [block(each) for block, each in zip(self.skips, (image, *maps), strict=True)]
        decoded = []
        for level in reversed(range(len(skips))):
            raised = cut(self.transpconvs[level](x), skips[level].shape[2:])
            x = self.stages[level](torch.cat([raised, skips[level]], dim=1))
            decoded.insert(0, x)
        return self.heads(decoded[: len(self.heads.seg_layers)], self.deep_supervision)


def _blocks(
    count: int, dims: int, inputs: int, outputs: int, kernel: list[int], level: int
) -> nn.Module:
    from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
    from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks

    instance, options = get_matching_instancenorm(dimension=dims), {"eps": 1e-5, "affine": True}
    norm: Callable[..., nn.Module] = instance if level < FINE else _group_norm
    return StackedConvBlocks(
        count,
        nn.Conv2d if dims == 2 else nn.Conv3d,
        inputs,
        outputs,
        kernel,
        1,
        conv_bias=False,
        norm_op=norm,  # pyright: ignore[reportArgumentType] declared as a class, called as a maker
        norm_op_kwargs=options if level < FINE else {},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(channels), channels)
