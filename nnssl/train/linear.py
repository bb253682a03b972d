"""A linear classifier of voxels on the encoder's maps: its closed form, and its scores at
points and everywhere.

A map's token i of stride s stands for the voxels s i to s (i + 1); between the tokens' centres a
map is interpolated linearly. What is linear in the channels may be applied before or after:
`everywhere` classifies on the maps' own coarse grids and interpolates the scores, which equals
classifying the interpolated features of `at_points`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.types import Shape

FLAT = 1e-6  # features that vary less than this are constants
ROWS = 4096  # taken to float64 at once


def ridge(
    features: Tensor, targets: Tensor, weights: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression: features [n d], targets [n k], weights [n] -> coefficients [d k],
    offset [k].

    Minimises mean_w |z a + c - y|^2 + penalty |a|^2 over a and c, with z the features at mean 0 and
    variance 1 under the weights (Hoerl and Kennard 1970); the coefficients are in units of the
    features. In float64 on the CPU.
    """
    w = weights.double().cpu() / weights.double().sum().cpu()
    y = targets.double().cpu()
    mean, middle = _mean(features, w), w @ y
    gram, moment = _products(features, y - middle, w, mean)
    std = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(std > FLAT, 1 / std.clamp(min=FLAT), 0.0)[:, None]
    gram *= scale * scale.T
    gram.diagonal().add_(penalty)
    coefficients = torch.cholesky_solve(moment * scale, torch.linalg.cholesky(gram)) * scale
    return coefficients, middle - mean @ coefficients


def _chunks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A few rows at a time in float64 on the CPU, and which they are."""
    for first in range(0, len(features), ROWS):
        rows = slice(first, first + ROWS)
        yield rows, features[rows].double().cpu()


def _mean(features: Tensor, w: Tensor) -> Tensor:
    return reduce(add, (w[rows] @ x for rows, x in _chunks(features)))


def _products(features: Tensor, y: Tensor, w: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted products of the centred features with themselves [d d] and with y [d k]."""
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    moment = torch.zeros(len(mean), y.shape[1], dtype=torch.float64)
    for rows, x in _chunks(features):
        centred = x - mean
        weighted = centred * w[rows, None]
        gram += weighted.T @ centred
        moment += weighted.T @ y[rows]
    return gram, moment


def offsets(scores: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """What to add to the scores [n k] so that the Dice of each class but the first is best, with
    `weights` [n] of the points: [k].

    For each class alone: a point is of it where its score beats all others by more than a
    threshold.
    """
    best = torch.zeros(scores.shape[1], dtype=scores.dtype)
    for k in range(1, len(best)):
        best[k] = -_best_threshold(_class_margin(scores, k), classes == k, weights)
    return best


def _class_margin(scores: Tensor, k: int) -> Tensor:
    """[n k] -> [n]: by how much class k beats the best of the others."""
    others = scores.clone()
    others[:, k] = -torch.inf
    return scores[:, k] - others.amax(dim=1)


def _best_threshold(lead: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """The threshold of `lead` [n] above which the points have the best Dice with `right` [n]."""
    lead, order = lead.sort(descending=True)
    weight = weights[order]
    hit = (weight * right[order]).cumsum(0)
    dice = 2 * hit / (weight.cumsum(0) + hit[-1])
    at = int(dice.argmax())
    return (lead[at] + lead[min(at + 1, len(lead) - 1)]) / 2


def at_points(maps: Sequence[Tensor], strides: Sequence[int], points: Tensor) -> Tensor:
    """The maps [1 C *grid] of one image at voxels `points` [n dims], concatenated: [n sum C]."""
    return torch.cat(
        [
            _interpolated(tokens[0], stride, points)
            for tokens, stride in zip(maps, strides, strict=True)
        ],
        1,
    )


def _interpolated(tokens: Tensor, stride: int, points: Tensor) -> Tensor:
    """[C *grid] at voxels [n dims] -> [n C], linear between the tokens' centres, constant beyond
    the outermost.
    """
    grid = torch.tensor(tokens.shape[1:], device=tokens.device)
    position = _on_grid(points.to(tokens.device), stride, grid)
    low = position.floor().long()
    fraction = (position - low).to(tokens.dtype)
    flat, out = tokens.flatten(1), tokens.new_zeros(())
    for corner in itertools.product((0, 1), repeat=points.shape[1]):
        side = torch.tensor(corner, device=tokens.device)
        at = torch.minimum(low + side, grid - 1)
        weight = torch.where(side.bool(), fraction, 1 - fraction).prod(dim=1)
        out = out + flat[:, _raster_index(at, tokens.shape[1:])] * weight
    return out.T


def _on_grid(points: Tensor, stride: int, grid: Tensor) -> Tensor:
    """Voxels in units of the grid's tokens, whose centres are whole numbers; not beyond these."""
    position = ((points + 0.5) / stride - 0.5).clamp(min=0)
    return torch.minimum(position, (grid - 1).to(position.dtype))


def _raster_index(at: Tensor, grid: Sequence[int]) -> Tensor:
    """Grid positions [n dims] -> indices [n] into the flattened grid."""
    index = torch.zeros_like(at[:, 0])
    for axis, size in enumerate(grid):
        index = index * size + at[:, axis]
    return index


def everywhere(
    maps: Sequence[Tensor], strides: Sequence[int], fitted: tuple[Tensor, Tensor], size: Shape
) -> Tensor:
    """The classifier's scores at every voxel: maps [B C *grid], `fitted` as from `ridge` -> [B k
    *size].
    """
    coefficients, offset = (part.to(maps[0].device, torch.float32) for part in fitted)
    parts = coefficients.split([tokens.shape[1] for tokens in maps])
    scores = offset.view(1, -1, *[1] * len(size))
    for tokens, stride, part in zip(maps, strides, parts, strict=True):
        # PyTorch declares dims as a number alone
        dims = cast("int", ([1], [0]))
        coarse = torch.tensordot(tokens.float(), part, dims).movedim(-1, 1)
        scores = scores + _at_voxels(coarse, stride, size)
    return scores


def _at_voxels(coarse: Tensor, stride: int, size: Shape) -> Tensor:
    """[B k *grid] -> [B k *size], linear between the tokens' centres."""
    mode = "trilinear" if len(size) == 3 else "bilinear"
    fine = F.interpolate(coarse, scale_factor=stride, mode=mode, align_corners=False)
    return fine[(..., *(slice(n) for n in size))]
