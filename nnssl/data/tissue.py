"""Tissue and position of each voxel of a scan, and the clusters of both."""

from __future__ import annotations

import numpy as np

from nnssl.data.atlas import Affine
from nnssl.types import Spacing

POSITION_MM = 40.0  # of a position that weighs as much as one unit of tissue


def tissue_and_position(voxels: np.ndarray, affine: Affine, spacing: Spacing) -> np.ndarray:
    """Of each voxel of a scan in HU [Z Y X] whose map to the template is `affine`: [Z Y X 8]."""
    positions = affine.places(voxels.shape, spacing) / POSITION_MM
    return np.concatenate([features(voxels, spacing), positions], axis=-1)


def features(voxels: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Tissue at each voxel of a scan in HU [Z Y X]: float32 [Z Y X 5].

    Soft tissue (-175 to 250 HU, in units of 110) and bone (150 to 700, in units of 200) at the
    voxel, both over their neighbourhood, and how much soft tissue varies there.
    """
    from scipy.ndimage import gaussian_filter

    def wide(image: np.ndarray, mm: float) -> np.ndarray:
        return gaussian_filter(image, [mm / step for step in spacing])

    soft = np.clip(voxels, -175, 250).astype(np.float32) / 110
    bone = np.clip(voxels, 150, 700).astype(np.float32) / 200
    mean = wide(soft, 6.0)
    varies = np.sqrt(np.maximum(wide(soft**2, 6.0) - mean**2, 0))
    local = [
        wide(soft, 2.5),
        0.8 * wide(bone, 2.5),
        0.8 * wide(soft, 8.0),
        0.8 * wide(bone, 10.0),
        0.8 * varies,
    ]
    return np.stack(local, axis=-1)


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


def nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of `centres` [K F] to each of `rows` [N F]: int [N]."""
    squares = (centres**2).sum(axis=1)
    parts = (rows[first : first + 65536] for first in range(0, len(rows), 65536))
    return np.concatenate([(squares - 2 * part @ centres.T).argmin(axis=1) for part in parts])
