"""Shared types and conventions: axes, spacing, masks, and names that several parts use.

Axes.     Every array is (z, y, x) as nnU-Net reads it; batches are [B C Z Y X]; in 2D [B C Y X].
Spacing.  Millimetres, in the same order as the axes.
Masks.    `masked` is Bool on the encoder's token grid (stride 2), True = hidden from the encoder.
          A method's view "hidden_blocks" is Bool on the grid of its blocks, True = hidden as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# nnU-Net's variables
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
FINAL = "checkpoint_final.pth"  # of a pretraining, and of nnU-Net's trainings
NAME, BASE = "nnUNetSwinPlans", "nnUNetPlans"  # of our plans, and of nnU-Net's own
MANIFEST = "manifest.json"  # beside the checkpoints of a pretraining: how it was made

STRIDES = (2, 4, 8, 16, 32)  # of an encoder's five maps, in voxels
LAST = (4,)  # the number of an encoder's coarsest map, where it is wanted alone

Shape = tuple[int, ...]
Spacing = tuple[float, ...]
PrintFn = Callable[[str], None]  # gets each line that a user is to read; `print` by default

# as checkpoints and plans name it; pydoc.locate finds it
NETWORK_CLASS = "nnssl.network.swin_unetr.SwinUNETR"
BODY_HU = -500.0  # voxels above this are body, not air


class GradContext(Protocol):
    """The `ctx` of an autograd function, which PyTorch types incompletely."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_dirty(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...
