"""The rules by which scans are left out: not a usable volume, or not CT in HU."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nnssl.types import BODY_HU

SPACING_BOUNDS = (0.05, 15.0)  # mm; below is microscopy, above are localizers and missing headers
SMALLEST_AXIS = 8  # voxels
PADDING_HU = -1500.0  # what is below was filled in: no tissue and no air
RIM_HU = (-900.0, -300.0)  # lung, and the voxels between air and skin
SMALLEST_RIM = 1e-4  # of the voxels that are not padding; in 241 real scans 0.006 to 0.33
TISSUE_HU = (-150.0, 200.0)  # where the median of the body lies; in 241 real scans -73 to 62
LEAST_TISSUE = 0.5  # of the body within TISSUE_HU; in 241 real scans 0.71 to 0.93
DENSE_HU = 600.0
# of the body above DENSE_HU, unless bone leads up to it: in 211 real scans 0.002 to 0.11
MOST_DENSE = 0.1
MOST_BY_BONE = 4.0  # times the voxels between tissue and DENSE_HU; in 211 real scans 0.08 to 1.6
LARGEST_HU = 65536.0  # metal and padding stay below
LARGEST_VALUE = 1e15  # of images that are not CT; PET in Bq/ml stays below 1e9
# what ITK and C++ say where memory is short; the message has the name of the file as well
ALLOCATION = re.compile("[Ff]ailed to allocate memory|bad_alloc|[Cc]annot allocate memory")
NOT_CT = "For images that are not CT: nnssl_pretrain --no-hu"


class UnusableScanError(ValueError):
    """A scan that is left out; the message is the reason in the report."""


class PassingError(RuntimeError):
    """Nothing is known of the scan: the disk or the memory failed, which may be over when it is
    tried again.
    """


@contextmanager
def passing_errors() -> Iterator[None]:
    """What the operating system says becomes PassingError; what is wrong inside of a file stays as
    it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, gzip.BadGzipFile):
            raise
        raise PassingError(
            f"cannot be read now: {error.strerror} ({error.filename}); the next run retries"
        ) from error


def itk_error(error: RuntimeError) -> Exception:
    """What an error of ITK means for a file that was read to its end before, and so is there and
    readable.
    """
    if ALLOCATION.search(str(error)):
        return MemoryError(summarise_error(error))
    return UnusableScanError(f"cannot be read: {summarise_error(error)}")


def check_name(path: Path | str) -> str:
    """`path`, unless its bytes are not UTF-8: SimpleITK would abort the whole process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnusableScanError(
            "cannot be read: its name or folder is not valid UTF-8; rename it"
        ) from error
    return str(path)


def check_grid(size: Sequence[int], spacing: Sequence[float], components: int) -> None:
    """`size` in voxels and `spacing` in mm, both as SimpleITK gives them (x, y, z)."""
    check_components(components)
    check_dimensions(size)
    if min(size) < SMALLEST_AXIS:
        raise UnusableScanError(
            f"is too small: size {tuple(size)}, at least {SMALLEST_AXIS} voxels per axis are needed"
        )
    _check_spacing_bounds(spacing)


def check_components(components: int) -> None:
    if components != 1:
        raise UnusableScanError(f"has {components} components per voxel, but CT has one")


def check_dimensions(size: Sequence[int]) -> None:
    """`size` in voxels (x, y, z)."""
    if len(size) != 3:
        raise UnusableScanError(f"is not three-dimensional: size {tuple(size)}")


def _check_spacing_bounds(spacing: Sequence[float]) -> None:
    low, high = SPACING_BOUNDS
    if not all(low <= abs(s) <= high for s in spacing):
        raise UnusableScanError(
            f"has an implausible spacing: {tuple(spacing)} mm (x, y, z), allowed is {low} to "
            f"{high} mm"
        )


def check_values(voxels: np.ndarray) -> None:
    """Raise UnusableScanError unless the voxels [Z Y X] are finite, differ, and can be
    normalised by mean and std.
    """
    low, high = _check_differ(voxels)
    if max(-low, high) > LARGEST_VALUE:
        raise UnusableScanError(
            f"holds values from {low:g} to {high:g}, at most {LARGEST_VALUE:g} is allowed: such a "
            "fill value leaves nothing of the image once it is normalised; set those voxels to 0"
        )


def _check_differ(voxels: np.ndarray) -> tuple[float, float]:
    """The range of the voxels. Raises UnusableScanError unless they are finite and differ."""
    low, high = _range(voxels)
    if not np.isfinite([low, high]).all():
        raise UnusableScanError("holds NaN or infinite voxels")
    if low == high:
        raise UnusableScanError(f"is constant: every voxel is {low:g}")
    return low, high


def check_hu(hu: np.ndarray) -> None:
    """Raise UnusableScanError unless the voxels [Z Y X] look like a CT in HU (documentation/data.md
    gives the reasons).
    """
    _check_differ(hu)
    values = _check_range(hu)
    body = _body_values(hu)
    _check_rim(hu, values)
    _check_median(body)
    _check_tissue(body)
    _check_dense(body)


def _range(voxels: np.ndarray) -> tuple[float, float]:
    return float(voxels.min()), float(voxels.max())


def _body_values(hu: np.ndarray) -> np.ndarray:
    """The HU of the body's voxels. UnusableScanError where there are next to none."""
    body = hu[hu > BODY_HU]
    if body.size < 0.001 * hu.size:
        raise UnusableScanError(
            f"holds nothing but air: {body.size} of {hu.size} voxels above {BODY_HU:g} HU"
        )
    return body


def _check_range(hu: np.ndarray) -> str:
    """The range of the values, in words."""
    low, high = _range(hu)
    values = f"values {low:g} to {high:g}"
    if max(-low, high) > LARGEST_HU:
        raise UnusableScanError(f"is not in HU: {values}")
    return values


def _check_rim(hu: np.ndarray, values: str) -> None:
    """Every CT has lung, or a rim between air and skin."""
    scanned = hu.size - np.count_nonzero(hu < PADDING_HU)
    rim = _count_within(hu, RIM_HU)
    if rim < SMALLEST_RIM * scanned:
        raise UnusableScanError(
            f"is not in HU: {rim} of {scanned} voxels between {RIM_HU[0]:g} and {RIM_HU[1]:g}, "
            f"where every CT has lung, or the rim between air and skin ({values}). Values stored "
            f"without the rescale intercept look like this: convert the scan again. {NOT_CT}"
        )


def _check_median(body: np.ndarray) -> None:
    """`body`: the HU of the body's voxels. Their median is that of tissue."""
    median = float(np.median(body))
    if not TISSUE_HU[0] <= median <= TISSUE_HU[1]:
        raise UnusableScanError(
            f"is not in HU: the median of the voxels above {BODY_HU:g} is {median:g}, tissue lies "
            f"in {TISSUE_HU[0]:g} to {TISSUE_HU[1]:g}. {NOT_CT}"
        )


def _check_tissue(body: np.ndarray) -> None:
    """`body`: the HU of the body's voxels. Most of them are those of tissue."""
    tissue = _count_within(body, TISSUE_HU) / body.size
    if tissue < LEAST_TISSUE:
        raise UnusableScanError(
            f"is not in HU: {tissue:.0%} of the voxels above {BODY_HU:g} lie in {TISSUE_HU[0]:g} "
            f"to {TISSUE_HU[1]:g}, in CT at least {LEAST_TISSUE:.0%} do. {NOT_CT}"
        )


def _check_dense(body: np.ndarray) -> None:
    """`body`: the HU of the body's voxels. Bone has a rim that is less dense."""
    dense = np.count_nonzero(body > DENSE_HU)
    bone = np.count_nonzero((body > TISSUE_HU[1]) & (body <= DENSE_HU))
    if dense > MOST_DENSE * body.size and dense > MOST_BY_BONE * bone:
        raise UnusableScanError(
            f"is not in HU: {dense} voxels above {DENSE_HU:g} and {bone} in {TISSUE_HU[1]:g} to "
            f"{DENSE_HU:g}; bone is not so dense without a rim, tissue stored without its "
            "intercept is"
        )


def _count_within(values: np.ndarray, bounds: tuple[float, float]) -> int:
    low, high = bounds
    return int(np.count_nonzero((values >= low) & (values <= high)))


def summarise_error(error: Exception) -> str:
    """The telling line of an ITK error: the last, but for what the operating system happened to say
    before.
    """
    lines = list(filter(None, map(str.strip, str(error).splitlines())))
    telling = [line for line in lines if not line.startswith("Reason:")]
    last = (telling or lines or [type(error).__name__])[-1]
    return re.sub(r"\(0x[0-9a-f]+\)", "", last)[:300]
