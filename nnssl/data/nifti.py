"""NIfTI, checked before ITK reads it.

ITK fills the rest of a file that is cut short with 0, and reads 0 where a voxel is NaN or infinite.
In HU that is water, so neither would be noticed later. It takes 1 mm where there is no spacing, and
allocates what a header says.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from nnssl.data.refusals import UnusableScanError, passing_errors, summarise_error
from nnssl.types import Spacing

if TYPE_CHECKING:
    from nibabel import Nifti1Header
    from nibabel.spatialimages import SpatialImage

NIFTI_ENDINGS = (".nii", ".nii.gz")
BLOCK = 1 << 20  # bytes; divisible by the size of every voxel type
DEFLATE = 1032  # the most that one byte can become, by the format
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
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_nifti_header(path: Path | str) -> Header:
    """What the header promises, compared with the file's size. UnusableScanError for lies and for
    absent spacing.
    """
    path = Path(path)
    with passing_errors(), _damage():
        with _opened(path) as file:
            most = DEFLATE if isinstance(file, gzip.GzipFile) else 1
            header = _parsed(file.read(540))
        size = path.stat().st_size
    _check_spacing(header)
    found = _promised(header)
    needed = found.offset + found.bytes
    if needed > most * size:
        raise _bad(
            f"it is cut short, {size} bytes cannot hold the {needed} that its header promises"
        )
    return found


@contextmanager
def _damage() -> Iterator[None]:
    """What is wrong inside of a compressed file becomes UnusableScanError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(summarise_error(error)) from error


def _bad(words: str) -> UnusableScanError:
    return UnusableScanError(f"cannot be read: {words}")


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    """What is stored, uncompressed."""
    return gzip.open(path) if _is_zipped(path) else path.open("rb")


def _parsed(block: bytes) -> Nifti1Header:
    import nibabel

    kinds = {348: (nibabel.Nifti1Header, b"n+1"), 540: (nibabel.Nifti2Header, b"n+2")}
    first = block[:4]  # the header's own size
    sizes = {"<": int.from_bytes(first, "little"), ">": int.from_bytes(first, "big")}
    for endianness, size in sizes.items():
        if size in kinds and len(block) >= size:
            kind, magic = kinds[size]
            header = kind(block[:size], endianness=endianness, check=False)
            if header["magic"].item()[:3] == magic:
                return header
    raise _bad("it has no NIfTI header with the voxels in the same file")


def _promised(header: Nifti1Header) -> Header:
    shape, dtype = _shape(header), _dtype(header)
    offset = float(header["vox_offset"])
    if not (dtype.itemsize and math.isfinite(offset) and offset >= int(header["sizeof_hdr"])):
        raise _bad(f"its header says that the voxels begin at byte {offset:g}")
    scaled = header["scl_slope"] not in (0, 1) or header["scl_inter"] != 0
    return Header(shape, dtype, int(offset), scaled)


def _shape(header: Nifti1Header) -> tuple[int, ...]:
    count = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : count + 1])
    if not 1 <= count <= 7 or min(shape) < 1:
        raise _bad(f"its header gives the size {shape}")
    return shape


def _dtype(header: Nifti1Header) -> np.dtype:
    from nibabel.nifti1 import data_type_codes

    code = int(header["datatype"])
    try:
        known = cast("np.dtype", data_type_codes.dtype[code])
        return known.newbyteorder(header.endianness)
    except KeyError as error:
        raise _bad(f"its header gives the unknown voxel type {code}") from error


def _check_spacing(header: Nifti1Header) -> None:
    spacing = np.abs(header["pixdim"][1:4].astype(float))
    if not (np.isfinite(spacing).all() and spacing.all()):
        raise UnusableScanError(f"says no spacing: pixdim {spacing.tolist()}")
    if int(header["sform_code"]) <= 0:
        return
    axes = np.stack([header[f"srow_{axis}"][:3].astype(float) for axis in "xyz"])
    other = np.linalg.norm(axes, axis=0)
    if not np.allclose(spacing, other, rtol=SAME_SPACING):
        raise UnusableScanError(
            f"says two spacings: {spacing.round(4).tolist()} (pixdim) and "
            f"{other.round(4).tolist()} (sform) mm"
        )


def check_nifti(path: Path | str) -> None:
    """Read the file once, a block at a time. UnusableScanError when it is cut short, damaged, NaN
    or infinite.
    """
    header = read_nifti_header(path)
    with passing_errors(), _damage():
        count = sum(_checked(block, header.dtype) for block in _blocks(Path(path), header.offset))
    if count < header.bytes:
        raise _bad(f"it is cut short, {count} of {header.bytes} bytes of voxels are there")


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    with _opened(path) as file:
        while offset and (skipped := file.read(min(offset, BLOCK))):
            offset -= len(skipped)
        while block := file.read(BLOCK):
            yield block


def _checked(block: bytes, dtype: np.dtype) -> int:
    """Length of the block in bytes."""
    whole = len(block) - len(block) % dtype.itemsize
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(block[:whole], dtype)).all():
        raise UnusableScanError("holds NaN or infinite voxels")
    return len(block)


def read_by_nibabel(path: Path | str) -> tuple[np.ndarray, Spacing, np.ndarray]:
    """Voxels float32 [Z Y X], spacing (z, y, x) and affine as nnU-Net's NibabelIO reads them: a
    shear is left out.
    """
    import nibabel

    # nibabel declares the base of all that it loads
    image = cast("SpatialImage", nibabel.load(path))
    voxels = np.asarray(image.dataobj, np.float32)
    if voxels.ndim > 3 and set(voxels.shape[3:]) == {1}:
        voxels = voxels.reshape(voxels.shape[:3])
    spacing = tuple(float(zoom) for zoom in image.header.get_zooms()[2::-1])
    return voxels.transpose(), spacing, np.asarray(image.affine)
