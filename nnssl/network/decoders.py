"""CNN decoders with skips, as data: `SwinUNETRDecoder`, faithful to MONAI's, `LightDecoder`, and
`NNUNetDecoder`.

All take the image and the encoder's five maps (strides 2 to 32), work at any size (`nnunet` from 5
voxels along some axis on), and give logits at the image's size; while training also at half, a
quarter and an eighth of it (deep supervision).
A map of an odd size is reached by upsampling to one voxel more and cutting that off, so nothing is
ever padded or cropped. They climb by the encoder's `steps`: an axis that one of them left as it was
is not upsampled there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.cpu import upsampling as composed
from nnssl.encoder.config import STEPS
from nnssl.encoder.swin import Swin
from nnssl.network.layers import (
    DatasetNorm,
    Heads,
    Pointwise,
    conv,
    cut,
    groups_of,
    upsampling,
)
from nnssl.network.nnunet_decoder import NNUNetDecoder
from nnssl.network.norm_act import norm_act, norm_of
from nnssl.types import Shape

OUTPUTS = 4  # logits at 1, 1/2, 1/4 and 1/8 of the image's size, where every step halves


class ResidualBlock(nn.Module):
    """Two 3^d convolutions with instance norm around a shortcut (MONAI's UnetResBlock)."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(dims, inputs, outputs)
        self.conv2 = conv(dims, outputs, outputs)
        self.conv3 = Pointwise(inputs, outputs, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.conv3 is None else norm_act(self.conv3(x), act=False)
        return self.tail(self.conv1(x), shortcut)

    def tail(self, first: Tensor, shortcut: Tensor) -> Tensor:
        """All that follows the first convolution."""
        x = norm_act(self.conv2(norm_act(first)), act=False)
        return F.leaky_relu_(x + shortcut, 0.01)


class UpBlock(nn.Module):
    """Upsampling, concatenation with the skip, residual block (MONAI's UnetrUpBlock)."""

    def __init__(self, step: Shape, inputs: int, outputs: int) -> None:
        super().__init__()
        self.step = step
        self.upsample = upsampling(step, inputs, outputs)
        self.block = ResidualBlock(len(step), 2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if composed.is_supported(x, skip, self.step):
            weights = (self.upsample.weight, self.block.conv1.weight, self._pointwise().weight)
            first, shortcut = composed.join(x, skip, self.step, *weights)
        else:
            first, shortcut = self._one_by_one(x, skip)
        return self.block.tail(first, norm_act(shortcut, act=False))

    def _one_by_one(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([cut(self.upsample(x), skip.shape[2:]), skip], dim=1)
        return self.block.conv1(joined), self._pointwise()(joined)

    def _pointwise(self) -> Pointwise:
        if self.block.conv3 is None:
            raise RuntimeError("a block that halves its channels has a shortcut of its own")
        return self.block.conv3


class SwinUNETRDecoder(nn.Module):
    """Hatamizadeh et al. 2022 (arXiv 2201.01266), as in `monai.networks.nets.SwinUNETR` 1.6.1.

    Widths e, e, 2e, 4e, 8e at strides 1 to 16; a residual block on each skip but that of stride 16.
    """

    def __init__(
        self,
        steps: tuple[Shape, ...],
        image_channels: int,
        channels: tuple[int, ...],
        classes: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        dims = len(steps[0])
        e, e2, e4, e8, e16 = channels
        skips = ((image_channels, e), (e, e), (e2, e2), (e4, e4))
        ups = ((e16, e8), (e8, e4), (e4, e2), (e2, e), (e, e))
        self.skips = nn.ModuleList(ResidualBlock(dims, *widths) for widths in skips)
        self.bottom = ResidualBlock(dims, e16, e16)
        self.ups = nn.ModuleList(
            UpBlock(step, *widths) for step, widths in zip(steps[::-1], ups, strict=True)
        )
        self.heads = Heads((e, e, e2, e4), classes, deep_supervision)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """[B C *spatial] and the encoder's maps to logits [B classes *spatial], or several."""
        *fine, middle, bottom = maps
        skips = [block(x) for block, x in zip(self.skips, (image, *fine), strict=True)]
        x, decoded = self.bottom(bottom), []
        for up, skip in zip(self.ups, (middle, *skips[::-1]), strict=True):
            x = up(x, skip)
            decoded.insert(0, x)
        return self.heads(decoded[:OUTPUTS], self.deep_supervision)

    @staticmethod
    def default_widths(channels: tuple[int, ...]) -> tuple[int, ...]:
        """Channels of its maps at strides 1 to 16, from the encoder's at strides 2 to 32."""
        return (channels[0], *channels[:4])


class Lift(nn.Module):
    """Upsampling plus a projection of the skip, then one 3^d convolution; a norm and LeakyReLU
    after each.

    grouped: group norm instead of instance norm, for grids of a few voxels, of which a channel
    has no statistics.
    """

    def __init__(
        self, step: Shape, inputs: int, skip: int, outputs: int, pointwise: bool, grouped: bool
    ) -> None:
        super().__init__()
        dims = len(step)
        norms = [nn.GroupNorm(groups_of(outputs), outputs) for _ in range(2)] if grouped else []
        self.norms = nn.ModuleList(norms)
        self.upsample = upsampling(step, inputs, outputs)
        if pointwise:
            self.project = Pointwise(skip, outputs, bias=False)
        else:
            self.project = conv(dims, skip, outputs)
        self.conv = conv(dims, outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.project(skip).add_(cut(self.upsample(x), skip.shape[2:]))
        if not self.norms:
            return norm_act(self.conv(norm_act(x)))
        first, second = self.norms
        x = self.conv(F.leaky_relu_(first(x), 0.01))
        return F.leaky_relu_(second(x), 0.01)


class LightDecoder(nn.Module):
    """Sums instead of concatenations, one 3^d convolution per level, and few channels at full
    resolution.

    widths: at strides 1 to 16: most of a decoder's time goes to the first. None:
            `default_widths`.
    norm:   how each map is standardised first. Pretrained tokens have a large common part, beside
            which the skips' projections would hardly see where a token differs. "dataset": by the
            moments of the training set, and the lifts to strides 8 and 16 have group norms.
            "space": by those of the patch itself, with instance norms throughout, as models before
            0.2 have it; over a few tokens that is mostly noise.
    """

    def __init__(
        self,
        steps: tuple[Shape, ...],
        image_channels: int,
        channels: tuple[int, ...],
        classes: int,
        deep_supervision: bool,
        widths: tuple[int, ...] | None = None,
        norm: str = "space",
    ) -> None:
        super().__init__()
        if norm not in ("dataset", "space"):
            raise ValueError(f"norm of the light decoder is dataset or space, got {norm!r}")
        self.deep_supervision = deep_supervision
        by_dataset = norm == "dataset"
        self.norms = nn.ModuleList(DatasetNorm(width) for width in channels if by_dataset)
        widths = widths or self.default_widths(channels)
        if len(widths) != len(steps):
            raise ValueError(
                f"the light decoder takes {len(steps)} widths, at strides 1 to 16, got {widths}"
            )
        below, skips = (*widths[1:], channels[4]), (image_channels, *channels[:4])
        self.lifts = nn.ModuleList(
            Lift(step, *own, pointwise=level > 0, grouped=by_dataset and level > 2)
            for level, (step, *own) in enumerate(zip(steps, below, skips, widths, strict=True))
        )
        self.heads = Heads(tuple(widths[:OUTPUTS]), classes, deep_supervision)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """[B C *spatial] and the encoder's maps to logits [B classes *spatial], or several."""
        *fine, x = self._standardised(maps)
        decoded = []
        for lift, skip in zip(self.lifts[::-1], (image, *fine)[::-1], strict=True):
            x = lift(x, skip)
            decoded.insert(0, x)
        return self.heads(decoded[:OUTPUTS], self.deep_supervision)

    @staticmethod
    def default_widths(channels: tuple[int, ...]) -> tuple[int, ...]:
        """16, then the encoder's channels at strides 2 to 16, 256 at most."""
        return (16, *(min(width, 256) for width in channels[:4]))

    def _standardised(self, maps: list[Tensor]) -> list[Tensor]:
        if not self.norms:
            return [norm_of(each) for each in maps]
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)]


DECODERS = {"swinunetr": SwinUNETRDecoder, "light": LightDecoder, "nnunet": NNUNetDecoder}
# What a new plan or pretraining means by a decoder's name; older plans name the decoder alone.
OPTIONS = {"light": {"name": "light", "norm": "dataset"}}
LEFT_OUT = {"light": {"norm": "space"}}  # by plans from before an option


def full_options(decoder: str | dict) -> dict:
    """{"name": ..., ...its options} of what a new plan or pretraining names.

    Raises ValueError for an unknown decoder.
    """
    known = OPTIONS.get(decoder, decoder) if isinstance(decoder, str) else decoder
    return named(known)


def named(decoder: str | dict) -> dict:
    """{"name": ..., ...the options given}. Raises ValueError for an unknown decoder."""
    options = {"name": decoder} if isinstance(decoder, str) else dict(decoder)
    if options.get("name") not in DECODERS:
        raise ValueError(f"unknown decoder {options.get('name')!r}; known: {', '.join(DECODERS)}")
    return options


def spelled_out(decoder: str | dict) -> dict:
    """{"name": ..., ...its options} of what existing plans name: what they leave out has the value
    that it had then. Raises ValueError for an unknown decoder.
    """
    options = named(decoder)
    return LEFT_OUT.get(options["name"], {}) | options


def make_decoder(
    decoder: str | dict, encoder: Swin, classes: int, deep_supervision: bool
) -> nn.Module:
    """The decoder on top of `encoder`; a name alone means its defaults, as in older plans.

    Raises ValueError for an unknown decoder or option.
    """
    options = named(decoder)
    name = options.pop("name")
    config = encoder.config
    steps = tuple(config.step(number) for number in range(STEPS))
    shared = (steps, config.in_channels, encoder.channels, classes, deep_supervision)
    try:
        return DECODERS[name](*shared, **options)
    except TypeError as error:
        raise ValueError(
            f"decoder {name!r} does not take these options: {options} ({error})"
        ) from error
