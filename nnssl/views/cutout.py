"""Cut-out: which voxels of a view are taken away, as boxes drawn in fractions of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.memory import to_device
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def draw_cutout(
    fraction: float, edge: float, dims: int, generator: torch.Generator
) -> Float[Tensor, "boxes dims 2"]:
    """Random boxes that together hold at most a fraction of a view: [N dims 2], start and side as
    fractions of its sides.

    The share is uniform in 0 to `fraction`, each side in `edge` / 2 to `edge`. Boxes that would
    exceed the share are empty and come last, so that N depends on the settings alone.
    """
    most = math.ceil(fraction / (edge / 2) ** dims)
    wanted = fraction * torch.rand((), generator=generator)
    places, lengths = torch.rand(2, most, dims, generator=generator)
    sides = edge / 2 * (1 + lengths)
    fits = sides.prod(dim=1).cumsum(dim=0) <= wanted
    return torch.stack([places * (1 - sides), sides * fits[:, None]], dim=2)


def covered(
    boxes: Float[Tensor, "batch boxes dims 2"], size: Shape, device: torch.device | str = "cpu"
) -> Bool[Tensor, "batch *size"]:
    """The voxels whose middle lies in some box: [B N dims 2], on the CPU -> Bool [B *size] on
    `device`.
    """
    boxes = boxes[:, : int((boxes[..., 0, 1] > 0).sum(dim=1).max()) if boxes.numel() else 0]
    boxes = to_device(boxes, torch.device(device))
    inside = []
    for axis, length in enumerate(size):
        start, side = boxes[:, :, axis].unsqueeze(-1).unbind(dim=2)
        middles = (torch.arange(length, device=boxes.device) + 0.5) / length
        inside.append(((middles >= start) & (middles < start + side)).float())  # [B N length]
    first, rest = inside[0], inside[1]
    for last in inside[2:]:
        rest = (rest.unsqueeze(-1) * last.unsqueeze(-2)).flatten(2)
    return ((first.transpose(1, 2) @ rest) > 0.5).unflatten(2, size[1:])
