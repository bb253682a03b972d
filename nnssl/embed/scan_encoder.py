"""The pretrained encoder as a plain module that prepares its own scans."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnssl import checkpoint
from nnssl.data.orientation import Scan
from nnssl.data.plan import check_spacing
from nnssl.data.scans import Found
from nnssl.embed import pooling
from nnssl.embed.scan import Prepared, checked, found_at, grid_plan, prepare_scan
from nnssl.encoder.config import STEPS, SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.finetune import checkpoint_choice
from nnssl.hu import HUPolicy
from nnssl.types import Shape, Spacing


class Encoder(nn.Module):
    """A Swin encoder with the requirements on its input. Created in evaluation mode.

    channels: of its five maps.
    strides:  voxels (z, y, x) from one token of a map to the next, five times; in 2D z is 1.
    hu:       the map from HU to input; None: each scan by its own mean and std.
    spacing:  mm (z, y, x) of the grid.
    about:    method, sha256 and citations of the checkpoint.
    """

    def __init__(self, loaded: checkpoint.Checkpoint, spacing: Spacing | None = None) -> None:
        super().__init__()
        config = loaded.encoder_config
        _require_one_channel(loaded)
        self.encoder = Swin(config)
        checkpoint.transfer(loaded, self.encoder)
        self.hu: HUPolicy | None = loaded.hu
        self.crop: Shape = loaded.crop
        self.spacing: Spacing = _chosen_spacing(loaded, spacing)
        self.about = _provenance(loaded)
        self.dims: int = config.spatial_dims
        self.channels: tuple[int, ...] = self.encoder.channels
        self.strides: tuple[Shape, ...] = _strides(config)
        self.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five maps [B channels[i] *grid], of [B 1 Z Y X]; in 2D of [B 1 Y X]."""
        return self.encoder(x)

    def preprocess(self, scan: Path | str | np.ndarray, spacing: Spacing | None = None) -> Tensor:
        """The input of `forward`, float32 on the CPU: [1 1 Z Y X], in 2D a batch of slices [Z 1 Y
        X].

        scan: a volume file, a folder of one DICOM series, or voxels [Z Y X] in HU with their
        `spacing` in mm (z, y, x). Raises FileNotFoundError and UnusableScanError, by the same rules
        as a pretraining.
        """
        return self.batch(torch.from_numpy(self.prepare(scan, spacing).image))

    def prepare(
        self, scan: Path | str | Found | np.ndarray | Scan, spacing: Spacing | None = None
    ) -> Prepared:
        """As `preprocess`, with the scan's body and affine."""
        if isinstance(scan, np.ndarray):
            scan = _scan_of(scan, spacing)
        elif spacing is not None:
            raise ValueError("a file has its own spacing; leave spacing out")
        if not isinstance(scan, Scan):
            scan = self._read(scan)
        return prepare_scan(scan, grid_plan(grid_spacing(self.spacing, scan.spacing), self.hu))

    def _read(self, source: Path | str | Found) -> Scan:
        found = source if isinstance(source, Found) else found_at(source)
        return checked(found, in_hu=self.hu is not None)

    def batch(self, image: Tensor) -> Tensor:
        """[Z Y X] as `forward` takes it."""
        return image[None, None] if self.dims == 3 else image[:, None]

    def embed(
        self,
        scan: Path | str | np.ndarray,
        spacing: Spacing | None = None,
        window: pooling.Window = None,
    ) -> list[np.ndarray]:
        """Five vectors [channels[i]]: the maps' means over the body, as `nnssl_embed` writes them.

        window: voxels (z, y, x), "whole", or None for the rule of `pooling.window_for`.
        """
        prepared = self.prepare(scan, spacing)
        return [stage[0] for stage in pooling.pool(self, prepared, window=window).means]


def _require_one_channel(loaded: checkpoint.Checkpoint) -> None:
    if (channels := loaded.encoder_config.in_channels) != 1:
        raise ValueError(
            f"{loaded.path} takes {channels} channels, but scans have one; convert without --rgb "
            "for features of scans"
        )


def _provenance(loaded: checkpoint.Checkpoint) -> dict:
    return {
        "checkpoint": str(loaded.path),
        "sha256": loaded.sha256,
        "method": loaded.method,
        "citations": list(loaded.citations),
    }


def _strides(config: SwinConfig) -> tuple[Shape, ...]:
    """Voxels (z, y, x) from one token of each map to the next; in 2D z is 1."""
    steps = [(1,) * (3 - config.spatial_dims) + tuple(config.step(i)) for i in range(STEPS)]
    return tuple(accumulate(steps, _times))


def _times(one: Shape, other: Shape) -> Shape:
    return tuple(m * n for m, n in zip(one, other, strict=True))


def _scan_of(voxels: np.ndarray, spacing: Spacing | None) -> Scan:
    if spacing is None or len(spacing) != 3 or voxels.ndim != 3:
        raise ValueError(
            "voxels must be an array [Z Y X] with spacing=(z, y, x) in mm; got shape "
            f"{voxels.shape}, spacing {spacing}"
        )
    return Scan(np.asarray(voxels, np.float32), tuple(map(float, spacing)))


def grid_spacing(wanted: Spacing, own: Spacing) -> Spacing:
    """mm (z, y, x): slices of a 2D encoder that knows no z stay where they are."""
    return (own[0], *wanted) if len(wanted) == 2 else tuple(wanted)


def load_encoder(path: Path | str | None = None, spacing: Spacing | None = None) -> Encoder:
    """The encoder of a checkpoint: a path, `hf://owner/repo/file`, `https://...` or a name of
    released weights; None: the one that a training would start from.

    spacing: mm (z, y, x), for third-party weights whose own is unknown; never over a known one.
    Raises FileNotFoundError, AddressError, CheckpointError, or ValueError where the spacing is
    missing.
    """
    return Encoder(checkpoint.load(path or checkpoint_choice.choose({}).path), spacing)


def _require_own_spacing(loaded: checkpoint.Checkpoint, given: Spacing | None) -> None:
    if given:
        check_spacing(given)
    if loaded.spacing and given and tuple(given) != loaded.spacing:
        raise ValueError(
            f"{loaded.path} was pretrained at {loaded.spacing} mm (z, y, x), got {tuple(given)}: "
            "leave the spacing out"
        )


def _chosen_spacing(loaded: checkpoint.Checkpoint, given: Spacing | None) -> Spacing:
    """mm of the grid: the checkpoint's own, or the given one where it has none."""
    _require_own_spacing(loaded, given)
    if not (spacing := loaded.spacing or given):
        raise ValueError(
            f"{loaded.path} does not record the spacing of its pretraining: give it in mm (z, y, "
            "x) with --spacing Z Y X, or in Python with load_encoder(path, spacing=(z, y, x))"
        )
    return tuple(float(mm) for mm in spacing)
