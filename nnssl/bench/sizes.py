"""How large the things are that a bench of a GPU measures."""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.encoder.config import SwinConfig
from nnssl.types import Shape


@dataclass(frozen=True)
class BenchSizes:
    """What is measured: an encoder, pretraining crops and fine-tuning patches in voxels, and scans
    per step.
    """

    preset: str
    encoder: SwinConfig
    crop: Shape
    patch: Shape
    batch: int
    patches: int = 2
    settings: tuple[str, ...] = ()  # of the methods that know them
    graph: bool = False  # pretraining steps replayed as CUDA graphs


TINY = BenchSizes(
    "none, a dry run",
    SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2)),
    (32, 32, 32),
    (64, 32, 32),  # nnU-Net's networks halve it five times, and a single voxel has no instance norm
    2,
    1,
    ("prototypes=32", "head_hidden=16", "head_bottleneck=8", "head_out=8"),
)
