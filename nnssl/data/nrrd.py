"""The text header of an NRRD file (.nrrd, .nhdr)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnssl.data.data_files import unreadable, voxel_files
from nnssl.data.header_text import StoredVoxels, floats, lines, sizes
from nnssl.data.orientation import are_coplanar, off_right_angles
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
NO_FIELD = "a line of its header is not FIELD: VALUE, or repeats a field"


def parse(path: Path, file: BinaryIO) -> StoredVoxels:
    """Raises UnusableScanError, or ValueError or KeyError for what is not understood."""
    header = lines(file)
    if not re.fullmatch(r"NRRD000[1-6]", next(header, "")):
        raise unreadable("it does not begin with the NRRD magic")
    fields, rest = _fields(header)
    shape = _checked_sizes(fields)
    sheared = len(shape) == 3 and _is_sheared(fields)
    kind = fields["type"].lower()
    encoding = ENCODINGS[fields["encoding"].lower()]
    files, offset = voxel_files(path, file.tell(), fields.get("datafile"), rest)
    return StoredVoxels(
        files,
        offset + _skipped(fields, encoding),
        encoding,
        count=math.prod(shape),
        size=_bytes_per_voxel(kind),
        unsigned=kind.startswith("u"),
        sheared=sheared,
    )


def _bytes_per_voxel(kind: str) -> int:
    """`kind`: such as `unsigned short int` or `uint16_t`. Raises KeyError for an unknown one."""
    return TYPES[re.sub(r"^(unsigned |signed |u)|( int|_t)$", "", kind)]


def _fields(header: Iterator[str]) -> tuple[dict[str, str], Iterator[str]]:
    """The fields, and the lines after them where these list the data files."""
    fields: dict[str, str] = {}
    for key, value in _pairs(header):
        if key in fields:
            raise unreadable(NO_FIELD)
        fields[key] = value
        if key == "datafile" and value.upper().startswith("LIST"):
            return fields, header
    return fields, iter(())


def _pairs(header: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Field and value of the lines before the empty one, without comments and KEY:=VALUE."""
    for line in takewhile(bool, header):
        key, separator, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        if not separator:
            raise unreadable(NO_FIELD)
        yield key.lower().replace(" ", ""), value.strip()


def _checked_sizes(fields: dict[str, str]) -> list[int]:
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
    return off_right_angles(_axes(fields["spacedirections"])) > 1e-3


def _axes(space_directions: str) -> np.ndarray:
    """The axes' unit vectors [3 3]."""
    vectors = _directions(space_directions)
    axes = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    if are_coplanar(axes):
        raise unreadable("its space directions lie in one plane")
    return axes


def _directions(text: str) -> np.ndarray:
    """The vectors [3 3] of (a,b,c) (d,e,f) (g,h,i)."""
    parts = re.findall(r"\(([^()]*)\)", text)
    vectors = [floats(part.replace(",", " ")) for part in parts]
    if [len(vector) for vector in vectors] != [3, 3, 3]:
        raise UnusableScanError("says no spacing")
    return np.array(vectors)
