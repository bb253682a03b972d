"""Shared parts of the text headers of MetaImage and NRRD: lines, numbers, promised sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnssl.data.data_files import unreadable

LONGEST_HEADER, LONGEST_LINE = 1 << 20, 1 << 14  # bytes


@dataclass(frozen=True)
class StoredVoxels:
    """Where the voxels are: `files` in order, from byte `offset` of the first, `count` voxels of
    `size` bytes.
    """

    files: tuple[Path, ...]
    offset: int
    encoding: str
    count: int
    size: int
    unsigned: bool
    limit: int | None = None  # bytes of compressed voxels, where the header says so
    sheared: bool = False

    @property
    def holds_no_air(self) -> bool:
        """Whether the type cannot hold the HU of air: unsigned, or too few bits."""
        return self.unsigned or self.size == 1

    @property
    def bytes(self) -> int:
        """The bytes of all voxels, decoded."""
        return self.count * self.size


def lines(file: BinaryIO) -> Iterator[str]:
    """Raises UnusableScanError for a header that is not text, or longer than any valid one."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE or file.tell() > LONGEST_HEADER or b"\0" in line:
            raise unreadable("its header is not text, or is longer than any valid header")
        yield line.decode("latin-1").strip("\r\n")


def floats(text: str) -> list[float]:
    """The numbers of a list, or nothing unless all are finite."""
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        return []
    return numbers if np.isfinite(numbers).all() else []


def sizes(text: str) -> list[int]:
    """Voxels along each axis."""
    found = [int(part) for part in text.split()]
    if not _is_shape(found):
        raise unreadable(f"its header gives the size {text[:60]}")
    return found


def _is_shape(found: list[int]) -> bool:
    return 1 <= len(found) <= 16 and all(1 <= size < 1 << 31 for size in found)
