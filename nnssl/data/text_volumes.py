"""The voxels behind the text header of a MetaImage or NRRD file, read once to see that they are
there.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nnssl.data.data_files import compressed_damage, unreadable
from nnssl.data.header_text import StoredVoxels
from nnssl.data.refusals import passing_errors
from nnssl.data.text_headers import read_text_header
from nnssl.files import BLOCK, blocks


def check_text_volume(path: Path | str) -> None:
    """Read the voxels once, a block at a time. UnusableScanError when they are truncated or
    damaged.
    """
    stored = read_text_header(path)
    count = _count_bytes(stored)
    if stored.encoding in ("zlib", "gzip", "bzip2") and count < stored.bytes:
        raise unreadable(f"it is truncated, {count} of {stored.bytes} bytes of voxels are there")


def _count_bytes(stored: StoredVoxels) -> int:
    """The bytes of voxels in the files, decompressed."""
    with passing_errors(), compressed_damage():
        return sum(sum(map(len, _decoded_blocks(file, stored))) for file in stored.files)


def _decoded_blocks(path: Path, stored: StoredVoxels) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(stored.offset if path == stored.files[0] else 0)
        if stored.encoding == "zlib":
            yield from _inflated(file, stored.limit)
        else:
            yield from blocks(_decompressed(file, stored.encoding))


def _decompressed(file: BinaryIO, encoding: str) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    if encoding == "gzip":
        return gzip.GzipFile(fileobj=file)
    return bz2.BZ2File(file) if encoding == "bzip2" else file


def _inflated(file: BinaryIO, limit: int | None) -> Iterator[bytes]:
    """A zlib stream to its end, where its checksum is."""
    stream = zlib.decompressobj(47)  # zlib or gzip, as MetaIO takes both
    left = limit
    while not stream.eof:
        data = stream.unconsumed_tail
        if not data:
            data = file.read(BLOCK if left is None else min(BLOCK, left))
            left = None if left is None else left - len(data)
        block = stream.decompress(data, BLOCK)
        if not block and not data:
            raise EOFError("the stream does not end")
        yield block
