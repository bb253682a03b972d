"""Register every scan of a collection to one template by affine maps, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.data.crops import stored_array
from nnssl.data.orientation import NO_FLIP, Flips
from nnssl.data.refusals import itk_error
from nnssl.hu import HUPolicy
from nnssl.types import Shape, Spacing

if TYPE_CHECKING:
    import SimpleITK

SOFT = (-500.0, 400.0)  # HU; what is beyond tells little of where one is
STARTS = (0.0, -60.0, 60.0)  # mm along z: how much of neck or legs is in a scan differs
COARSE = 8.0  # mm, of the grid that is registered
STRETCH = (0.65, 1.35)  # of an axis; beyond it the registration has failed
NOTHING = 1e-3  # std of an image that shows nothing to register


class RegistrationError(ValueError):
    """A scan could not be registered to the template; it is left out."""


@dataclass(frozen=True)
class Affine:
    """mm in a scan to mm in the template, (x, y, z): matrix [3 3] @ position [3] + offset [3]."""

    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...]

    def template_positions(self, shape: Shape, spacing: Spacing) -> np.ndarray:
        """Where each voxel of a scan [Z Y X] lies in the template, in mm: float32 [Z Y X 3], (x, y,
        z).
        """
        positions = _positions(shape, spacing) @ np.array(self.matrix).T + np.array(self.offset)
        return positions.astype(np.float32)


def _positions(shape: Shape, spacing: Spacing) -> np.ndarray:
    """Where each voxel of a scan [Z Y X] lies, in mm from the first: [Z Y X 3], (x, y, z)."""
    axes = [np.arange(size) * mm for size, mm in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y, z], axis=-1)


def template_of(shapes: Sequence[Shape]) -> int:
    """The scan nearest to the 80th percentile of all sizes: it covers most of what the others
    cover.
    """
    sizes = np.array(shapes, dtype=float)
    distances = np.abs(sizes - np.percentile(sizes, 80, axis=0)).sum(axis=1)
    return int(distances.argmin())


def hounsfield(voxels: np.ndarray, hu: HUPolicy | None) -> np.ndarray:
    """Preprocessed voxels back to HU; without HU to a scale of alike width, 100 for one std."""
    return hu.restore(voxels) if hu is not None else voxels * 100.0


def register(
    template: np.ndarray,
    voxels: np.ndarray,
    spacing: Spacing,
    flips: Flips = NO_FLIP,
) -> Affine:
    """The affine map from `voxels` to `template`, both HU [Z Y X] at `spacing` mm.

    flips: the axes that run the other way in the template; no optimiser finds that.

    Mattes mutual information on a coarse grid, from each of STARTS; the best of them counts.
    Raises RegistrationError where none succeeds or the result cannot be anatomy.
    """
    fixed, moving = _coarse(template, spacing), _coarse(voxels, spacing)
    return _affine_of(_best(fixed, moving, flips).GetInverse())


def _best(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, flips: Flips
) -> SimpleITK.AffineTransform:
    """The transform from fixed to moving of the lowest metric, over all STARTS."""
    starts = [_initial(fixed, moving, start, flips) for start in STARTS]
    found = [one for start in starts if (one := _register(fixed, moving, start)) is not None]
    if not found:
        raise RegistrationError("has no structure to register")
    _, transform = min(found, key=lambda one: one[0])
    return transform


def _affine_of(transform: SimpleITK.AffineTransform) -> Affine:
    """Raises RegistrationError for a map that stretches more than anatomical variation explains."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    _check_stretch(matrix)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    offset = shift + centre - matrix @ centre
    return Affine(tuple(map(tuple, matrix.tolist())), tuple(offset.tolist()))


def _check_stretch(matrix: np.ndarray) -> None:
    stretch = np.linalg.svd(matrix, compute_uv=False)
    if not (STRETCH[0] <= stretch.min() and stretch.max() <= STRETCH[1]):
        raise RegistrationError(
            f"would have to be stretched by {stretch.min():.2f} to {stretch.max():.2f}"
        )


def _coarse(voxels: np.ndarray, spacing: Spacing) -> SimpleITK.Image:
    """A small smoothed image; its origin is the first voxel."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.clip(voxels, *SOFT).astype(np.float32))
    image.SetSpacing([float(mm) for mm in reversed(spacing)])
    factors = [max(1, round(COARSE / mm)) for mm in reversed(spacing)]
    return SimpleITK.Shrink(SimpleITK.DiscreteGaussian(image, [9.0] * 3), factors)


def _register(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, transform: SimpleITK.AffineTransform
) -> tuple[float, SimpleITK.AffineTransform] | None:
    """(metric, transform from fixed to moving) from this first transform, or None where it
    fails.
    """
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the same result on every machine
    method = _registration_method()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:  # images that do not overlap, or hold one value
        if isinstance(cause := itk_error(error), MemoryError):
            raise cause from error
        return None
    return method.GetMetricValue(), transform


def _initial(
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    start: float,
    flips: Flips,
) -> SimpleITK.AffineTransform:
    """The images' centres on each other, axes turned by `flips`, then `start` mm along z."""
    import SimpleITK

    centred = SimpleITK.CenteredTransformInitializer(
        fixed,
        moving,
        SimpleITK.AffineTransform(3),
        SimpleITK.CenteredTransformInitializerFilter.GEOMETRY,
    )
    transform = SimpleITK.AffineTransform(centred)
    transform.SetMatrix(np.diag([-1.0 if flip else 1.0 for flip in flips]).ravel().tolist())
    x, y, z = transform.GetTranslation()
    transform.SetTranslation((x, y, z + start))
    return transform


def _registration_method() -> SimpleITK.ImageRegistrationMethod:
    """Metric and optimiser; without the transform that it begins with."""
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, seed=1)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.05, 25)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInterpolator(SimpleITK.sitkLinear)
    return method


def check_spread(voxels: np.ndarray) -> None:
    """Raises RegistrationError for a scan of one value."""
    if not float(np.std(voxels)) > NOTHING:
        raise RegistrationError("holds one value")


def load_volume(path: Path) -> np.ndarray:
    """A stored volume as [Z Y X]: float32, or integers of labels and parcels as they are."""
    voxels = stored_array(path)[:][0]
    return voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels
