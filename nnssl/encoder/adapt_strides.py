"""Weights of an encoder that halves every axis, for one that leaves some as they are
(`SwinConfig.steps`).

Exactly: where a volume is stretched along such an axis, each of its slices twice, the pretrained
patch embedding makes of it what the adapted one makes of the volume itself; and so does each merge
of the grid of tokens. Both see each slice twice, so the weights for the two are added up. A merge's
layer norm has the same statistics with and without the repetition; its scale and offset, which may
differ between the two, are folded into the reduction:

    reduction(scale * x + offset) = (reduction * scale) x + reduction offset

so that the adapted norm starts at scale 1 and offset 0 and the reduction gets a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.encoder.config import STEPS, SwinConfig
from nnssl.encoder.windows import corners
from nnssl.types import Shape

STEM = "patch_embed.proj.weight"


def adapt(
    weights: dict[str, Tensor], theirs: SwinConfig, ours: SwinConfig
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`weights` of an encoder of `theirs` for one of `ours`, by name, and what was done to which.

    Only steps of 2 become 1; where it is the other way round, or tensors are missing, the weights
    stay as they are.
    """
    weights, explained = dict(weights), {}
    if theirs.spatial_dims != ours.spatial_dims:
        return weights, explained
    for number in range(STEPS):
        before, after = theirs.step(number), ours.step(number)
        if not _becomes_thinner(before, after):
            continue
        if number == 0:
            changed = _adapt_stem(weights, before, after)
        elif theirs.merging == "legacy":
            # it joins as many tokens as before, and those of a stretched volume are the same
            changed = []
        else:
            changed = _adapt_merge(weights, number, before, after)
        reason = f"adapted exactly from a step of {_by(before)} to one of {_by(after)}"
        explained |= dict.fromkeys(changed, reason)
    return weights, explained


def _becomes_thinner(before: Shape, after: Shape) -> bool:
    return before != after and all(b >= a for b, a in zip(before, after, strict=True))


def _adapt_stem(weights: dict[str, Tensor], before: Shape, after: Shape) -> list[str]:
    if STEM not in weights:
        return []
    weights[STEM] = weights[STEM].sum(_thinner_axes(before, after), keepdim=True)
    return [STEM]


def _thinner_axes(before: Shape, after: Shape) -> list[int]:
    """The axes of a convolution's weights along which `after` is thinner."""
    return [2 + axis for axis, (b, a) in enumerate(zip(before, after, strict=True)) if a < b]


def _adapt_merge(weights: dict[str, Tensor], number: int, before: Shape, after: Shape) -> list[str]:
    prefix = f"layers{number}.0.downsample."
    names = [prefix + name for name in ("norm.weight", "norm.bias", "reduction.weight")]
    if any(name not in weights for name in names):
        return []
    scale, offset, reduction = (weights[name].double() for name in names)
    bias = reduction @ offset
    bias_name = prefix + "reduction.bias"
    if bias_name in weights:
        bias = bias + weights[bias_name].double()
    joined = _join_corners(reduction * scale, before, after)
    width, dtype = joined.shape[1], weights[names[2]].dtype
    adapted = torch.ones(width), torch.zeros(width), joined, bias
    names.append(bias_name)
    weights.update((name, tensor.to(dtype)) for name, tensor in zip(names, adapted, strict=True))
    return names


def _join_corners(reduction: Tensor, before: Shape, after: Shape) -> Tensor:
    """The columns of corners that are one corner after the thinner step, added up."""
    old, new = corners(before), corners(after)
    by_corner = reduction.unflatten(1, (len(old), -1))
    joined = by_corner.new_zeros(len(reduction), len(new), by_corner.shape[-1])
    for corner, columns in zip(old, by_corner.unbind(1), strict=True):
        inside = tuple(c % step for c, step in zip(corner, after, strict=True))
        joined[:, new.index(inside)] += columns
    return joined.flatten(1)


def _by(step: Shape) -> str:
    return " x ".join(map(str, step))
