"""Upsampling, concatenation with a skip and a convolution, without upsampling or concatenating.

A convolution of [a, b] is the sum of those of a and b, and one after a transposed convolution is
itself a transposed convolution, of a larger kernel at the coarse size: the same function for less
work on a CPU.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def is_supported(x: Tensor, skip: Tensor, step: tuple[int, ...]) -> bool:
    """Whether it saves more multiplications than making the composed kernel costs, on a CPU."""
    exact = all(s * n == m for s, n, m in zip(step, x.shape[2:], skip.shape[2:], strict=True))
    # an exported network serves batches of any size
    if x.device.type != "cpu" or not exact or torch.compiler.is_compiling():
        return False
    voxels = skip.shape[0] * skip[0, 0].numel()
    channels = x.shape[1], skip.shape[1]
    return voxels * _saved_per_voxel(*channels, step) > 2 * _of_composing(*channels, step)


def _saved_per_voxel(coarse: int, fine: int, step: tuple[int, ...]) -> int:
    """Multiplications, for maps of so many channels."""
    taps = prod(2 if s == 2 else 3 for s in step)  # of the composed kernel, that reach a voxel
    return fine * (3 ** len(step) * fine + coarse - taps * coarse)


def _of_composing(coarse: int, fine: int, step: tuple[int, ...]) -> int:
    """Multiplications that make the composed kernel."""
    pairs_of_taps = prod(12 if s == 2 else 9 for s in step)
    return pairs_of_taps * coarse * fine * fine


def join(
    x: Tensor, skip: Tensor, step: tuple[int, ...], up: Tensor, first: Tensor, shortcut: Tensor
) -> tuple[Tensor, Tensor]:
    """The convolution `first` and the pointwise one `shortcut` of [`x` upsampled by `up`, `skip`].

    x [B C *grid], skip [B D *(step * grid)], up [C D *step], first [E 2D 3 ..], shortcut [E 2D].
    """
    half = skip.shape[1]
    plain = F.conv2d if skip.ndim == 4 else F.conv3d
    transposed = F.conv_transpose2d if skip.ndim == 4 else F.conv_transpose3d
    # 2^d then 3^d taps make 4^d; 1 then 3 make 3
    first_up = plain(up, first[:, :half], padding=2)
    shortcut_up = _pointwise(up, shortcut[:, :half])
    return (
        transposed(x, first_up, stride=step, padding=1).add_(
            plain(skip, first[:, half:], padding=1)
        ),
        transposed(x, shortcut_up, stride=step).add_(_pointwise(skip, shortcut[:, half:])),
    )


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.movedim(1, -1), weight).movedim(-1, 1)
