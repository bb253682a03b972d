"""Files read one block at a time, so that no file has to fit into memory."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 1 << 20  # bytes; divisible by the size of every voxel type


def blocks(file: BinaryIO | gzip.GzipFile | bz2.BZ2File) -> Iterator[bytes]:
    """What is left of `file`; the last block may be shorter."""
    while block := file.read(BLOCK):
        yield block
