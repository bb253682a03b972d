"""The text header of an NRRD file (.nrrd, .nhdr)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnssl.data.data_files import data_files, unreadable
from nnssl.data.header_text import StoredVoxels, floats, lines, sizes
from nnssl.data.refusals import UnusableScanError

# bytes on disk
TYPES = {
    "char": 1,
    "int8": 1,
    "short": 2,
    "int16": 2,
    "int": 4,
    "int32": 4,
    "long long": 8,
    "longlong": 8,
    "int64": 8,
    "float": 4,
    "double": 8,
}
ENCODINGS = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
}


def parse(path: Path, file: BinaryIO) -> StoredVoxels:
    """Raises UnusableScanError, or ValueError or KeyError for what is not understood."""
    header = lines(file)
    if not re.fullmatch(r"NRRD000[1-6]", next(header, "")):
        raise unreadable("it does not begin as NRRD does")
    fields, rest = _fields(header)
    shape = _shape(fields)
    sheared = len(shape) == 3 and _is_sheared(fields)
    kind = fields["type"].lower()
    encoding = ENCODINGS[fields["encoding"].lower()]
    files, offset = (path,), file.tell()
    if "datafile" in fields:
        files, offset = data_files(path, fields["datafile"], rest), 0
    return StoredVoxels(
        files,
        offset + _skipped(fields, encoding),
        encoding,
        count=math.prod(shape),
        size=TYPES[re.sub(r"^(unsigned |signed |u)|( int|_t)$", "", kind)],
        unsigned=kind.startswith("u"),
        sheared=sheared,
    )


def _fields(header: Iterator[str]) -> tuple[dict[str, str], Iterator[str]]:
    """The fields, and the lines after them where these list the data files."""
    fields: dict[str, str] = {}
    for line in header:
        if not line:
            break
        key, separator, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        key = key.lower().replace(" ", "")
        if not separator or key in fields:
            raise unreadable("a line of its header is not FIELD: VALUE, or a field is there twice")
        fields[key] = value.strip()
        if key == "datafile" and value.strip().upper().startswith("LIST"):
            return fields, header
    return fields, iter(())


def _shape(fields: dict[str, str]) -> list[int]:
    shape = sizes(fields["sizes"])
    if len(shape) != int(fields["dimension"]):
        raise unreadable(
            f"its header gives {len(shape)} sizes for {fields['dimension']} dimensions"
        )
    return shape


def _skipped(fields: dict[str, str], encoding: str) -> int:
    """Bytes between the header and the voxels."""
    skipped = int(fields.get("byteskip", "0"))
    from_the_end = skipped == -1 and encoding == "raw"
    if (skipped < 0 and not from_the_end) or int(fields.get("lineskip", "0")) < 0:
        raise unreadable("its header skips a negative number of bytes or lines")
    return max(skipped, 0) if encoding == "raw" else 0


def _is_sheared(fields: dict[str, str]) -> bool:
    """Whether the axes are not at right angles. UnusableScanError when there is no spacing."""
    if "spacedirections" not in fields:
        if len(floats(fields.get("spacings", ""))) != 3:
            raise UnusableScanError("says no spacing")
        return False
    vectors = _directions(fields["spacedirections"])
    axes = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    if abs(np.linalg.det(axes)) < 1e-3:
        raise unreadable("its space directions lie in one plane")
    return bool(np.abs(axes @ axes.T - np.eye(3)).max() > 1e-3)


def _directions(text: str) -> np.ndarray:
    """The vectors [3 3] of (a,b,c) (d,e,f) (g,h,i)."""
    parts = re.findall(r"\(([^()]*)\)", text)
    vectors = [floats(part.replace(",", " ")) for part in parts]
    if [len(vector) for vector in vectors] != [3, 3, 3]:
        raise UnusableScanError("says no spacing")
    return np.array(vectors)
