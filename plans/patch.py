"""Patch and batch size by nnU-Net's procedure, with this network's memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from nnssl.shapes import round_up
from nnssl.types import Shape, Spacing

SAMPLES = 2  # nnU-Net's smallest batch
SMALLEST = 16  # voxels; no axis of a patch is cut below
START = {2: 2048**2, 3: 256**3}  # voxels that nnU-Net starts from, at its 8 GB
START_GB = 8

# bytes of a training step with this patch and this many of them
Peak = Callable[[Shape, int], float]


def plan_patch(
    spacing: Spacing,
    image: tuple[float, ...],
    peak: Peak,
    grain: Callable[[Shape], Shape],
    gigabytes: float,
) -> Shape:
    """The largest patch of which two fit, of the image's proportions.

    spacing, image: mm and voxels of the median image, by axis.
    grain:          the numbers that the sides of such a patch are multiples of.
    gigabytes:      the target, in 10^9 bytes.
    As in nnU-Net: a cube in mm, cut to the median image, then shortened along the axis that covers
    most of the image. Raises ValueError when even the smallest patch does not fit.
    """
    patch = _cube(spacing, image, gigabytes)
    patch = round_up(patch, grain(patch))
    while (needed := peak(patch, SAMPLES)) > gigabytes * 1e9:
        shorter = _shorter(patch, grain(patch), image)
        if shorter is None:
            raise ValueError(
                f"{gigabytes:.1f} GB are not enough: {SAMPLES} patches of {patch} need "
                f"{needed / 1e9:.1f} GB. Raise -gpu_memory_target, or use a smaller network: "
                "--decoder light, or an encoder of fewer channels"
            )
        patch = round_up(shorter, grain(shorter))
    return patch


def _shorter(patch: Shape, steps: Shape, image: tuple[float, ...]) -> Shape | None:
    """The patch less one step along the axis to shorten; None where no axis can be shorter."""
    axis = _axis_to_shorten(patch, steps, image)
    if axis is None:
        return None
    return (*patch[:axis], patch[axis] - steps[axis], *patch[axis + 1 :])


def _cube(spacing: Spacing, image: tuple[float, ...], gigabytes: float) -> Shape:
    """In voxels: of equal sides in mm, but nowhere larger than the image."""
    side = _side_of_cube(spacing, gigabytes)
    wanted = (min(side / mm, size) for mm, size in zip(spacing, image, strict=True))
    return tuple(max(1, round(n)) for n in wanted)


def _side_of_cube(spacing: Spacing, gigabytes: float) -> float:
    """In mm."""
    voxels = START[len(spacing)] * max(1, gigabytes / START_GB)
    return (voxels * prod(spacing)) ** (1 / len(spacing))


def _axis_to_shorten(patch: Shape, steps: Shape, image: tuple[float, ...]) -> int | None:
    """The one that covers most of the image, of those that can be shorter by a step."""
    axes = [axis for axis, step in enumerate(steps) if patch[axis] - step >= SMALLEST]
    return max(axes, key=lambda axis: patch[axis] / image[axis]) if axes else None


def plan_batch(patch: Shape, peak: Peak, gigabytes: float, most: float) -> int:
    """How many patches fit, from two on; `most` where the dataset is so small that more would cover
    much of it.
    """
    one = peak(patch, SAMPLES) - peak(patch, SAMPLES - 1)
    room = gigabytes * 1e9 - peak(patch, SAMPLES)
    return max(SAMPLES, min(SAMPLES + int(room // one), round(most)))
