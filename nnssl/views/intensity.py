"""Intensity augmentation of views: HU windows, contrast, brightness, gamma, noise, blur.

Units: network input. What is meant in HU is converted by the plan's HU policy (`Ranges.of`).
Without one (MRI) the unit is the scan's std around its mean; the std of a body in CT, 250 HU,
stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnssl.hu import HUPolicy
from nnssl.views.spatial import per_image, separable_filter

if TYPE_CHECKING:
    from jaxtyping import Float

# In HU:
LOWS, HIGHS = (-460.0, -60.0), (240.0, 1290.0)  # of a window's lower and upper end
BRIGHTNESS = 100.0  # added at most, either way; a tenth of the range between fat and bone
NOISE = 75.0  # largest std; some 0.05 of the whole range
BODY = HUPolicy(low=-1000.0, high=3000.0, mean=40.0, std=250.0)  # for images without a policy
# In no unit:
CONTRASTS = (0.75, 1.25)  # nnU-Net's
GAMMAS = (0.7, 1.5)  # nnU-Net's
BLURS = (0.5, 1.5)  # std in voxels
# of a window, contrast, brightness, gamma, noise, blur; ours
CHANCES = (0.5, 0.5, 0.5, 0.3, 0.3, 0.3)


@dataclass(frozen=True)
class Ranges:
    """The bounds between which strengths are drawn, in network input."""

    lows: tuple[float, float]
    highs: tuple[float, float]
    brightnesses: tuple[float, float]
    noises: tuple[float, float]

    @classmethod
    def of(cls, hu: HUPolicy | None) -> Ranges:
        """As the HU above are in network input by `hu`; as those of BODY without a policy.

        Also as those of BODY where the policy ends within the windows' inner ends, as one of lung
        alone may: all of a scan could then lie beyond a window. Brightness and noise have one size
        everywhere in the image: a HU counts as much as it does on average from LOWS to HIGHS.
        """
        if hu is None or hu.low >= LOWS[1] or hu.high <= HIGHS[0]:
            hu = BODY
        ends = np.array([*LOWS, *HIGHS])
        lowest, low, high, highest = hu.normalise(ends).tolist()
        clipped = ends.clip(hu.low, hu.high)
        unit = (highest - lowest) / float(clipped[-1] - clipped[0])
        return cls(
            (lowest, low),
            (high, highest),
            (-BRIGHTNESS * unit, BRIGHTNESS * unit),
            (0.0, NOISE * unit),
        )


STANDARD = Ranges.of(None)


def draw_window(
    chance: float, generator: torch.Generator, ranges: Ranges = STANDARD
) -> tuple[float, float]:
    """With probability `chance` a random window (lower, upper), else (-inf, inf).

    nnU-Net clips each CT dataset at percentiles of its own foreground, so fat, lung and air may all
    arrive as one value; an encoder that never saw that would face a domain shift. The CT analogue
    of colour jitter.
    """
    happens, low, high = torch.rand(3, generator=generator).tolist()
    if happens >= chance:
        return -math.inf, math.inf
    return _within(ranges.lows, low), _within(ranges.highs, high)


def apply_windows(
    regions: Float[Tensor, "batch *shape"], windows: Sequence[tuple[float, float]]
) -> Float[Tensor, "batch *shape"]:
    """[B ...], each clipped to its own window (lower, upper)."""
    low, high = per_image(torch.tensor(windows, dtype=regions.dtype), regions)
    return regions.clamp(low, high)


class IntensityDraw(NamedTuple):
    """One draw; the defaults change nothing."""

    low: float = -math.inf  # the window's ends, in network input, as brightness and noise
    high: float = math.inf
    contrast: float = 1.0  # factor around the body's mean
    brightness: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0  # std
    blur: float = 0.0  # std of the kernel, in voxels
    seed: int = 0  # of the noise


def draw_intensity(generator: torch.Generator, ranges: Ranges = STANDARD) -> IntensityDraw:
    """Each effect with its chance and a uniformly random strength (see the head of this file).

    Takes the same number of draws whatever happens.
    """
    low, high = draw_window(CHANCES[0], generator, ranges)
    happens = torch.rand(5, generator=generator).tolist()
    strengths = torch.rand(5, generator=generator).tolist()
    seed = int(torch.randint(2**62, (), generator=generator))
    bounds = (CONTRASTS, ranges.brightnesses, GAMMAS, ranges.noises, BLURS)
    effects = list(IntensityDraw()[2:7])  # none
    for effect, chance in enumerate(CHANCES[1:]):
        if happens[effect] < chance:
            effects[effect] = _within(bounds[effect], strengths[effect])
    return IntensityDraw(low, high, *effects, seed=seed)


def apply_intensity(
    images: Float[Tensor, "batch 1 *size"], draws: Sequence[IntensityDraw]
) -> Float[Tensor, "batch 1 *size"]:
    """[B 1 *s] -> the same, each image by its own draw.

    First what a scanner does (blur, noise), then what a display does (window, contrast, brightness,
    gamma between the image's own ends). The noise comes from a generator of the images' device:
    other devices give other noise.
    """
    if any(draw.blur for draw in draws):
        images = blur(images, torch.tensor([[draw.blur] * (images.ndim - 2) for draw in draws]))
    return _display(_add_noise(images, draws), draws)


def _display(images: Tensor, draws: Sequence[IntensityDraw]) -> Tensor:
    """Window, contrast and brightness, then gamma."""
    numbers = torch.tensor([draw[:5] for draw in draws], dtype=images.dtype)
    low, high, contrast, brightness, gamma = per_image(numbers, images)
    images = torch.clamp(images, low, high) * contrast + brightness
    return _curve(images, gamma) if any(draw.gamma != 1 for draw in draws) else images


def blur(
    images: Float[Tensor, "batch 1 *size"], stds: Float[Tensor, "batch dims"]
) -> Float[Tensor, "batch 1 *size"]:
    """Gaussian blur of [B 1 *s], its std in voxels given for each image and axis, [B dims]; 0
    changes nothing.
    """
    weights = []
    for axis, size in enumerate(images.shape[2:]):
        voxels = torch.arange(size, dtype=torch.float64)
        std = stds[:, axis].double().cpu().clamp(min=1e-6)[:, None, None]
        kernel = torch.exp(-0.5 * ((voxels[:, None] - voxels) / std) ** 2)
        weights.append(kernel / kernel.sum(dim=-1, keepdim=True))
    return separable_filter(images, weights)


def _add_noise(images: Tensor, draws: Sequence[IntensityDraw]) -> Tensor:
    noisy = images.clone()
    for image, draw in zip(noisy, draws, strict=True):
        if draw.noise:
            image += draw.noise * gaussian(image, draw.seed)
    return noisy


def gaussian(image: Float[Tensor, "1 *size"], seed: int) -> Float[Tensor, "1 *size"]:
    """Noise of mean 0 and std 1, of the image's shape and on its device."""
    source = torch.Generator(device=image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=source, device=image.device, dtype=image.dtype)


def _curve(images: Tensor, gamma: Tensor) -> Tensor:
    """x -> x^gamma between each image's least and greatest value, which stay."""
    axes = list(range(1, images.ndim))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    span = (high - low).clamp(min=1e-6)
    return torch.where(gamma == 1, images, ((images - low) / span) ** gamma * span + low)


def _within(bounds: tuple[float, float], fraction: float) -> float:
    return bounds[0] + fraction * (bounds[1] - bounds[0])
