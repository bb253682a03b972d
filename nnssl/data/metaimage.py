"""The text header of a MetaImage file (.mha, .mhd)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnssl.data.data_files import unreadable, voxel_files
from nnssl.data.header_text import StoredVoxels, floats, lines, sizes
from nnssl.data.orientation import are_coplanar
from nnssl.data.refusals import UnusableScanError, check_components

# bytes on disk; a long is one of 4 in MetaImage
TYPES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "LONG": 4,
    "ULONG": 4,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
    "FLOAT": 4,
    "DOUBLE": 8,
}
VECTORS = (
    "DimSize",
    "ElementSpacing",
    "ElementSize",
    "Offset",
    "Position",
    "Origin",
    "CenterOfRotation",
)
MATRICES = ("TransformMatrix", "Rotation", "Orientation")
# keys that say where the voxels are and what they mean; any other may repeat, or have no value
USED = {
    *VECTORS,
    *MATRICES,
    "NDims",
    "ElementType",
    "ElementNumberOfChannels",
    "ElementDataFile",
    "HeaderSize",
    "BinaryData",
    "CompressedData",
    "CompressedDataSize",
}


def parse(path: Path, file: BinaryIO) -> StoredVoxels:
    """Raises UnusableScanError, or ValueError or KeyError for what is not understood."""
    fields = _fields(file)
    _check_fields(fields)
    kind = fields["ElementType"].removeprefix("MET_")
    encoding, limit = _encoding(fields)
    files, offset = voxel_files(path, file.tell(), _data_file(fields), lines(file))
    return StoredVoxels(
        files,
        max(offset, _skipped(fields)),
        encoding,
        count=math.prod(sizes(fields["DimSize"])),
        size=TYPES[kind],
        unsigned=kind.startswith("U"),
        limit=limit,
    )


def _data_file(fields: dict[str, str]) -> str | None:
    """What the header says of other files; None where the voxels follow it."""
    named = fields["ElementDataFile"]
    return None if named.upper() == "LOCAL" else named


def _skipped(fields: dict[str, str]) -> int:
    """Bytes before the voxels; -1 where they end the file."""
    if (skipped := int(fields.get("HeaderSize", "0"))) < -1:
        raise unreadable(f"its header says HeaderSize {skipped}")
    return skipped


def _fields(file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    for number, line in enumerate(filter(str.strip, lines(file)), start=1):
        _add_field(fields, line, number)
        if "ElementDataFile" in fields:
            return fields
    raise unreadable("its header names no ElementDataFile")


def _add_field(fields: dict[str, str], line: str, number: int) -> None:
    # Strict, since MetaIO would find another key or value in what is not of this form. ITK adds the
    # metadata of the file that it read before: `dim[0] = 3`, `0008|0005 = ISO_IR 100`.
    found = re.fullmatch(r"\s*([^\s=:]+)\s*=\s*([^\r]*?)\s*", line)
    if not found:
        raise unreadable(f"line {number} of its header is not KEY = VALUE")
    key, value = found.groups()
    if key in USED and (key in fields or not value):
        raise unreadable(f"line {number} of its header repeats {key}, or gives it no value")
    fields[key] = value


def _check_fields(fields: dict[str, str]) -> None:
    """Refuse other than scalars on three axes, and what is not finite."""
    if fields.get("NDims") != "3":
        raise UnusableScanError(f"is not three-dimensional: NDims {fields.get('NDims')}")
    _check_counts(fields, VECTORS, 3)
    _check_counts(fields, MATRICES, 9)
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        raise UnusableScanError("says no spacing")
    _check_axes(fields)
    check_components(int(fields.get("ElementNumberOfChannels", "1")))


def _check_axes(fields: dict[str, str]) -> None:
    for key in MATRICES:
        if key in fields and are_coplanar(np.reshape(floats(fields[key]), (3, 3))):
            raise unreadable(f"its {key} gives axes that lie in one plane")


def _check_counts(fields: dict[str, str], keys: tuple[str, ...], count: int) -> None:
    """Refuse one of `keys` that does not give `count` finite numbers."""
    if any(len(floats(fields[key])) != count for key in keys if key in fields):
        raise unreadable(
            f"its header does not give {count} finite numbers for one of {', '.join(keys)}"
        )


def _encoding(fields: dict[str, str]) -> tuple[str, int | None]:
    """How the voxels are encoded, and the bytes of compressed ones where the header says so."""
    if _true(fields.get("CompressedData", "False")):
        size = fields.get("CompressedDataSize")
        return "zlib", None if size is None else int(size)
    return "raw" if _true(fields.get("BinaryData", "True")) else "text", None


def _true(text: str) -> bool:
    return text[:1].upper() in ("T", "1")
