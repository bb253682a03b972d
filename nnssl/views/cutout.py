"""Cut-out: the voxels removed from a view, as boxes drawn in fractions of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.host_memory import to_device
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


AT_ONCE = 256  # boxes: each takes a slice of the view in memory


def draw_cutout(
    fraction: float, edge: float, dims: int, generator: torch.Generator
) -> Float[Tensor, "boxes dims 2"]:
    """Random boxes that together hold at most a fraction of a view: [N dims 2], start and side as
    fractions of its sides.

    Their fraction is uniform in 0 to `fraction`, each side in `edge` / 2 to `edge`. Boxes that
    would exceed it are empty and come last, so that N depends on the settings alone.
    """
    most = math.ceil(fraction / (edge / 2) ** dims)
    wanted = fraction * torch.rand((), generator=generator)
    positions, lengths = torch.rand(2, most, dims, generator=generator)
    sides = edge / 2 * (1 + lengths)
    fits = sides.prod(dim=1).cumsum(dim=0) <= wanted
    return torch.stack([positions * (1 - sides), sides * fits[:, None]], dim=2)


def covered(
    boxes: Float[Tensor, "batch boxes dims 2"], size: Shape, device: torch.device | str = "cpu"
) -> Bool[Tensor, "batch *size"]:
    """The voxels whose centre lies in some box: [B N dims 2], on the CPU -> Bool [B *size] on
    `device`.
    """
    boxes = boxes[:, : int((boxes[..., 0, 1] > 0).sum(dim=1).max()) if boxes.numel() else 0]
    boxes = to_device(boxes, torch.device(device))
    painted = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for some in boxes.split(AT_ONCE, dim=1):
        painted |= _covered(some, size)
    return painted


def _covered(boxes: Tensor, size: Shape) -> Tensor:
    first, rest, *others = [_inside(boxes[:, :, axis], length) for axis, length in enumerate(size)]
    for last in others:
        rest = (rest.unsqueeze(-1) * last.unsqueeze(-2)).flatten(2)
    return ((first.transpose(1, 2) @ rest) > 0.5).unflatten(2, size[1:])


def _inside(spans: Tensor, length: int) -> Tensor:
    """Start and side of boxes along one axis [B N 2] -> [B N length], 1 where a voxel's centre lies
    in the box, else 0.
    """
    start, side = spans.unsqueeze(-1).unbind(dim=2)
    centres = (torch.arange(length, device=spans.device) + 0.5) / length
    return ((centres >= start) & (centres < start + side)).float()
