"""Paints a patient on a grid of voxels: partial volume, texture and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnssl.phantoms.anatomy import Anatomy, draw_anatomy
from nnssl.phantoms.solids import Grid
from nnssl.types import Shape, Spacing

AIR = -1000.0


@dataclass(frozen=True)
class Phantom:
    """`hu` int16 [Z Y X], `labels` uint8 [Z Y X] with the values of LABELS, `spacing` in mm."""

    hu: np.ndarray
    labels: np.ndarray
    spacing: Spacing


def phantom(seed: int, shape: Shape | None = None, spacing: Spacing | None = None) -> Phantom:
    """The phantom of this seed, the same on every machine with the same numpy.

    The field of view is some 210 x 290 x 370 mm. Without `shape` [Z Y X] and `spacing` (mm) voxels
    are 4 to 7 mm wide, so that everything stays small; with one of them the other follows from the
    field of view. Raises ValueError on an impossible shape or spacing.
    """
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng)
    # the field of view, mm
    extent = (rng.uniform(190, 230), rng.uniform(275, 310), rng.uniform(350, 385))
    coarse = (rng.uniform(4.0, 7.0), *[rng.uniform(5.0, 6.5)] * 2)
    _check_shape(shape)
    _check_phantom_spacing(spacing)
    if spacing is None:
        spacing = coarse if shape is None else _spacing_to_fill(extent, shape)
    if shape is None:
        shape = _shape_to_fill(extent, spacing)
    return render(anatomy, shape, spacing, rng)


def _shape_to_fill(extent: Spacing, spacing: Spacing) -> Shape:
    """Voxels of `spacing` mm that fill `extent` mm, two at least."""
    return tuple(max(2, round(mm / step)) for mm, step in zip(extent, spacing, strict=True))


def _spacing_to_fill(extent: Spacing, shape: Shape) -> Spacing:
    """So that `shape` voxels fill `extent` mm."""
    return tuple(mm / voxels for mm, voxels in zip(extent, shape, strict=True))


def _check_shape(shape: Shape | None) -> None:
    if shape is not None and (len(shape) != 3 or min(shape) < 2):
        raise ValueError(
            f"a phantom needs three axes of at least 2 voxels, got shape {tuple(shape)}"
        )


def _check_phantom_spacing(spacing: Spacing | None) -> None:
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"a phantom needs three spacings above 0 mm, got {tuple(spacing)}")


def render(anatomy: Anatomy, shape: Shape, spacing: Spacing, rng: np.random.Generator) -> Phantom:
    """Paint the parts, blur over the voxel borders (partial volume), add texture and noise."""
    hu, texture, labels = _painted(anatomy, shape, spacing)
    hu = blur(hu, passes=1, fraction=0.12)
    hu += texture * _noise(rng, shape, passes=3)
    hu += anatomy.noise * _noise(rng, shape, passes=1)
    rounded = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return Phantom(rounded, labels, tuple(map(float, spacing)))


def _painted(
    anatomy: Anatomy, shape: Shape, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, std of the texture, and labels, each [Z Y X]."""
    grid = _bent(_grid(shape, spacing), anatomy.bend)
    hu = np.full(shape, AIR, np.float32)
    texture = np.zeros(shape, np.float32)
    labels = np.zeros(shape, np.uint8)
    for part in anatomy.parts:
        inside = part.inside(grid)
        hu[inside], texture[inside], labels[inside] = part.hu, part.texture, part.label
    return hu, texture, labels


def _noise(rng: np.random.Generator, shape: Shape, passes: int) -> np.ndarray:
    """Smooth noise [Z Y X] of std 1."""
    noise = blur(rng.standard_normal(shape, np.float32), passes)
    return noise / noise.std()


def _grid(shape: Shape, spacing: Spacing) -> Grid:
    z, y, x = np.meshgrid(*map(_coordinates, shape, spacing), indexing="ij")
    return z, y, x


def _coordinates(voxels: int, mm: float) -> np.ndarray:
    """Along one axis, from its middle."""
    return (np.arange(voxels, dtype=np.float32) - (voxels - 1) / 2) * mm


def _bent(grid: Grid, bend: np.ndarray) -> Grid:
    """Each axis shifted by a slow wave along the next one: no organ stays an exact ellipsoid."""
    z, y, x = grid
    bend_z, bend_y, bend_x = bend.astype(np.float32)
    return z + _wave(y, bend_z), y + _wave(x, bend_y), x + _wave(z, bend_x)


def _wave(along: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """mm; `bend`: amplitude and wavelength in mm, and phase."""
    amplitude, wavelength, phase = bend
    return amplitude * np.sin(2 * np.pi * along / wavelength + phase)


def blur(volume: np.ndarray, passes: int, fraction: float = 0.25) -> np.ndarray:
    """Each neighbour gives `fraction` of itself, along every axis, `passes` times; edges repeat."""
    for _ in range(passes):
        for axis in range(volume.ndim):
            volume = _blur_along(volume, axis, fraction)
    return np.ascontiguousarray(volume)


def _blur_along(volume: np.ndarray, axis: int, fraction: float) -> np.ndarray:
    pad = np.array([(1, 1) if a == axis else (0, 0) for a in range(volume.ndim)])
    wide = np.moveaxis(np.pad(volume, pad, mode="edge"), axis, 0)
    blurred = fraction * (wide[:-2] + wide[2:]) + (1 - 2 * fraction) * wide[1:-1]
    return np.moveaxis(blurred, 0, axis)
