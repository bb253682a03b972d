"""The words of this project: axes, masks, spacing, and the Hounsfield policy.

Axes.     Every array is (z, y, x) as nnU-Net reads it; batches are [B C Z Y X]; in 2D [B C Y X].
Spacing.  Millimetres, in the same order as the axes.
Masks.    `masked` is Bool on the encoder's token grid (stride 2), True = hidden from the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"  # nnU-Net's variables
FINAL = "checkpoint_final.pth"  # of a pretraining, and of nnU-Net's trainings

Shape = tuple[int, ...]
Spacing = tuple[float, ...]

NETWORK_CLASS = "nnssl.network.swin_unetr.SwinUNETR"  # as checkpoints and plans name it; pydoc.locate finds it
BODY_HU = -500.0  # voxels above this are body, not air (METHODS: HU > -500)


@dataclass(frozen=True)
class HUPolicy:
    """How Hounsfield units become network input: clip to [low, high], then (hu - mean) / sd.

    `mean` and `sd` are taken over body voxels after clipping. All four are in HU.
    """

    low: float
    high: float
    mean: float
    sd: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.sd > 0):
            raise ValueError(
                f"HU policy needs low < high and sd > 0, got low={self.low}, high={self.high}, sd={self.sd}"
            )

    def normalise(self, hu):
        """HU (numpy array or tensor) to network input, out of place."""
        return (hu.clip(self.low, self.high) - self.mean) / self.sd

    def restore(self, normalised):
        """Network input back to (clipped) HU."""
        return normalised * self.sd + self.mean
