"""Tissue and position of each voxel of a scan, and the clusters of both."""

from __future__ import annotations

import numpy as np

from nnssl.data.atlas import Affine
from nnssl.types import Spacing

POSITION_MM = 40.0  # of a position that weighs as much as one unit of tissue


def tissue_and_position(voxels: np.ndarray, affine: Affine, spacing: Spacing) -> np.ndarray:
    """What clusters are made of: [Z Y X 8] of a scan in HU, which `affine` maps to the template."""
    positions = affine.template_positions(voxels.shape, spacing) / POSITION_MM
    return np.concatenate([features(voxels, spacing), positions], axis=-1)


def features(voxels: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Tissue at each voxel of a scan in HU [Z Y X]: float32 [Z Y X 5].

    Soft tissue (-175 to 250 HU, in units of 110) and bone (150 to 700, in units of 200) at the
    voxel, both over their neighbourhood, and how much soft tissue varies there.
    """
    soft = np.clip(voxels, -175, 250).astype(np.float32) / 110
    bone = np.clip(voxels, 150, 700).astype(np.float32) / 200
    local = [
        _smoothed(soft, 2.5, spacing),
        0.8 * _smoothed(bone, 2.5, spacing),
        0.8 * _smoothed(soft, 8.0, spacing),
        0.8 * _smoothed(bone, 10.0, spacing),
        0.8 * _local_std(soft, 6.0, spacing),
    ]
    return np.stack(local, axis=-1)


def _smoothed(image: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """By a Gaussian whose std is `mm`."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, [mm / step for step in spacing])


def _local_std(image: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """Within a Gaussian whose own std is `mm`."""
    mean = _smoothed(image, mm, spacing)
    return np.sqrt(np.maximum(_smoothed(image**2, mm, spacing) - mean**2, 0))


def cluster(rows: np.ndarray, classes: int) -> np.ndarray:
    """The centres [classes F] of k-means over `rows` [N F]; the same for the same rows."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        classes,
        random_state=0,
        n_init=2,  # pyright: ignore[reportArgumentType] scikit-learn declares no types
        batch_size=8192,
    ).fit(rows)
    return np.asarray(means.cluster_centers_, np.float32)


def nearest_centre(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of `centres` [K F] to each of `rows` [N F]: int [N]."""
    squares = (centres**2).sum(axis=1)
    parts = (rows[first : first + 65536] for first in range(0, len(rows), 65536))
    return np.concatenate([(squares - 2 * part @ centres.T).argmin(axis=1) for part in parts])
