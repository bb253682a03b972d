"""NIfTI files that ITK reads without complaint though they are broken.

Found by trying: where a NIfTI is truncated, ITK fills the rest with 0; where a voxel is NaN or infinite, ITK
reads 0. In HU that is water, so neither would be noticed later.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnssl.data.refusals import RefusedError, short

BLOCK = 1 << 20  # bytes; divisible by the size of every voxel type


def check_nifti(path: Path | str) -> None:
    """Read the file once, a block at a time. RefusedError when it is cut short, damaged, NaN or infinite."""
    import nibabel

    try:
        voxels = nibabel.load(path).dataobj
        count = sum(_checked(block, voxels.dtype) for block in _blocks(Path(path), voxels.offset))
    except (EOFError, zlib.error, OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise RefusedError(f"cannot be read: {short(error)}") from error
    wanted = math.prod(voxels.shape) * voxels.dtype.itemsize
    if count < wanted:
        raise RefusedError(f"cannot be read: it is cut short, {count} of {wanted} bytes of voxels are there")


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        file.read(offset)
        while block := file.read(BLOCK):
            yield block


def _checked(block: bytes, dtype: np.dtype) -> int:
    """Length of the block in bytes."""
    whole = len(block) - len(block) % dtype.itemsize
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(block[:whole], dtype)).all():
        raise RefusedError("holds NaN or infinite voxels")
    return len(block)
