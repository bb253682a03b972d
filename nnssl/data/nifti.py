"""NIfTI, checked before ITK reads it.

ITK fills the missing rest of a truncated file with 0, and reads 0 where a voxel is NaN or infinite.
In HU that is water, so neither would be noticed later. It takes 1 mm where there is no spacing, and
allocates what a header says.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np

from nnssl.data.data_files import DEFLATE, compressed_damage, unreadable
from nnssl.data.refusals import UnusableScanError, passing_errors, summarise_error
from nnssl.files import BLOCK, blocks
from nnssl.types import Spacing

if TYPE_CHECKING:
    from nibabel import Nifti1Header
    from nibabel.spatialimages import SpatialImage

NIFTI_ENDINGS = (".nii", ".nii.gz")
SAME_SPACING = 0.01  # relative: what rounding in pixdim or sform can explain


@dataclass(frozen=True)
class Header:
    """`dtype` as the voxels are stored, `offset` in bytes; `scaled`: a slope or intercept changes
    their values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    scaled: bool

    @property
    def holds_no_air(self) -> bool:
        """Whether no voxel, unless scaled, can be as low as the HU of air: no sign, or one byte."""
        return self.dtype.kind == "u" or self.dtype == np.int8

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_nifti_header(path: Path | str) -> Header:
    """What the header promises, compared with the file's size. UnusableScanError for lies and for
    absent spacing.
    """
    path = Path(path)
    with passing_errors(), compressed_damage():
        with _opened(path) as file:
            most = DEFLATE if isinstance(file, gzip.GzipFile) else 1
            header = _parsed(file.read(540))
        size = path.stat().st_size
    _check_pixdim(header)
    found = _promised(header)
    _check_length(found, size, most)
    return found


def _check_length(promised: Header, size: int, most: int) -> None:
    """`size` of the file in bytes, each of which can become `most`."""
    needed = promised.offset + promised.bytes
    if needed > most * size:
        raise unreadable(
            f"it is truncated, {size} bytes cannot hold the {needed} that its header promises"
        )


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    """What is stored, uncompressed."""
    return gzip.open(path) if _is_zipped(path) else path.open("rb")


def _parsed(block: bytes) -> Nifti1Header:
    for order in ("little", "big"):
        if (header := _header_in(block, order)) is not None:
            return header
    raise unreadable("it has no NIfTI header with the voxels in the same file")


def _header_in(block: bytes, order: Literal["little", "big"]) -> Nifti1Header | None:
    """The header that `block` begins with in this order of bytes, where it does."""
    import nibabel

    kinds = {348: (nibabel.Nifti1Header, b"n+1"), 540: (nibabel.Nifti2Header, b"n+2")}
    size = int.from_bytes(block[:4], order)  # the header's own
    if size not in kinds or len(block) < size:
        return None
    kind, magic = kinds[size]
    header = kind(block[:size], endianness=order, check=False)
    return header if header["magic"].item()[:3] == magic else None


def _promised(header: Nifti1Header) -> Header:
    shape, dtype = _header_shape(header), _dtype(header)
    offset = _offset(header, dtype)
    scaled = header["scl_slope"] not in (0, 1) or header["scl_inter"] != 0
    return Header(shape, dtype, offset, scaled)


def _offset(header: Nifti1Header, dtype: np.dtype) -> int:
    """The byte at which the voxels begin. UnusableScanError for voxels of no byte as well."""
    offset = float(header["vox_offset"])
    if not (dtype.itemsize and math.isfinite(offset) and offset >= int(header["sizeof_hdr"])):
        raise unreadable(f"its header says that the voxels begin at byte {offset:g}")
    return int(offset)


def _header_shape(header: Nifti1Header) -> tuple[int, ...]:
    count = int(header["dim"][0])
    shape = tuple(header["dim"][1 : count + 1].tolist())
    if not 1 <= count <= 7 or min(shape) < 1:
        raise unreadable(f"its header gives the size {shape}")
    return shape


def _dtype(header: Nifti1Header) -> np.dtype:
    from nibabel.nifti1 import data_type_codes

    code = int(header["datatype"])
    try:
        known = cast("np.dtype", data_type_codes.dtype[code])
        return known.newbyteorder(header.endianness)
    except KeyError as error:
        raise unreadable(f"its header gives the unknown voxel type {code}") from error


def _check_pixdim(header: Nifti1Header) -> None:
    spacing = np.abs(header["pixdim"][1:4].astype(float))
    if not (np.isfinite(spacing).all() and spacing.all()):
        raise UnusableScanError(f"has no usable spacing: pixdim {spacing.tolist()}")
    if int(header["sform_code"]) > 0:
        _check_same(spacing, _sform_spacing(header))


def _sform_spacing(header: Nifti1Header) -> np.ndarray:
    axes = np.stack([header[f"srow_{axis}"][:3].astype(float) for axis in "xyz"])
    return np.linalg.norm(axes, axis=0)


def _check_same(pixdim: np.ndarray, sform: np.ndarray) -> None:
    """The spacing by either."""
    if not np.allclose(pixdim, sform, rtol=SAME_SPACING):
        raise UnusableScanError(
            f"gives two different spacings: {pixdim.round(4).tolist()} (pixdim) and "
            f"{sform.round(4).tolist()} (sform) mm"
        )


def check_nifti(path: Path | str) -> None:
    """Read the file once, a block at a time. UnusableScanError when it is truncated, damaged, NaN
    or infinite.
    """
    header = read_nifti_header(path)
    with passing_errors(), compressed_damage():
        count = _count_bytes(Path(path), header)
    if count < header.bytes:
        raise unreadable(f"it is truncated, {count} of {header.bytes} bytes of voxels are there")


def _voxel_blocks(path: Path, offset: int) -> Iterator[bytes]:
    with _opened(path) as file:
        while offset and (skipped := file.read(min(offset, BLOCK))):
            offset -= len(skipped)
        yield from blocks(file)


def _count_bytes(path: Path, header: Header) -> int:
    """The bytes of voxels in the file. UnusableScanError where one is NaN or infinite."""
    count = 0
    for block in _voxel_blocks(path, header.offset):
        _check_finite(block, header.dtype)
        count += len(block)
    return count


def _check_finite(block: bytes, dtype: np.dtype) -> None:
    whole = len(block) - len(block) % dtype.itemsize
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(block[:whole], dtype)).all():
        raise UnusableScanError("holds NaN or infinite voxels")


def affine_by_nibabel(path: Path | str) -> np.ndarray:
    """[4 4], of the header alone. Raises UnusableScanError as `_opened_by_nibabel` does."""
    return np.asarray(_opened_by_nibabel(path).affine)


def _opened_by_nibabel(path: Path | str) -> SpatialImage:
    """By nibabel. UnusableScanError for what it refuses."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        # nibabel declares the base of all that it loads
        return cast("SpatialImage", nibabel.load(path))
    except ImageFileError as error:
        if _is_zipped(Path(path)) and not str(path).lower().endswith(".gz"):
            raise unreadable("it is gzipped: name it .nii.gz") from error
        raise unreadable(summarise_error(error)) from error


def read_by_nibabel(path: Path | str) -> tuple[np.ndarray, Spacing, np.ndarray]:
    """Voxels float32 [Z Y X], spacing (z, y, x) and affine as nnU-Net's NibabelIO reads them: a
    shear is left out.
    """
    image = _opened_by_nibabel(path)
    voxels = _without_empty_axes(np.asarray(image.dataobj, np.float32))
    spacing = tuple(float(zoom) for zoom in image.header.get_zooms()[2::-1])
    return voxels.transpose(), spacing, np.asarray(image.affine)


def _without_empty_axes(voxels: np.ndarray) -> np.ndarray:
    """Three axes, where those after them have one voxel each."""
    if voxels.ndim > 3 and set(voxels.shape[3:]) == {1}:
        return voxels.reshape(voxels.shape[:3])
    return voxels
