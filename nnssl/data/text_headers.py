"""The text headers of MetaImage and NRRD, read before ITK sees them.

ITK trusts them: it allocates what they promise, leaves voxels that are not there as the memory was,
opens any file they name, and takes a pattern of file names as the format of a C printf.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnssl.data.data_files import data_files, unreadable
from nnssl.data.refusals import UnusableScanError, passing_errors, summarise_error

META_ENDINGS, NRRD_ENDINGS = (".mha", ".mhd"), (".nrrd", ".nhdr")
LONGEST_HEADER, LONGEST_LINE = 1 << 20, 1 << 14  # bytes
DEFLATE = 1032  # the most that one byte can become, by the format
# On disk; a long is one of 4 bytes in MetaImage.
META_TYPES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "LONG": 4,
    "ULONG": 4,
}
META_TYPES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
META_COUNTS: dict[int, tuple[str, ...]] = {
    3: (
        "DimSize",
        "ElementSpacing",
        "ElementSize",
        "Offset",
        "Position",
        "Origin",
        "CenterOfRotation",
    )
}
META_COUNTS[9] = ("TransformMatrix", "Rotation", "Orientation")
NRRD_TYPES = {
    "char": 1,
    "int8": 1,
    "short": 2,
    "int16": 2,
    "int": 4,
    "int32": 4,
    "long long": 8,
    "longlong": 8,
}
NRRD_TYPES |= {"int64": 8, "float": 4, "double": 8}
ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
ENCODINGS |= {"txt": "text", "text": "text", "ascii": "text", "hex": "hex"}


@dataclass(frozen=True)
class Stored:
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


def read_text_header(path: Path | str) -> Stored:
    """What the header of a .mha, .mhd, .nrrd or .nhdr promises, compared with the sizes of the
    files.

    UnusableScanError for what ITK cannot be asked to read; PassingError when the disk does not
    answer.
    """
    path = Path(path)
    with passing_errors(), path.open("rb") as file:
        parse = _meta if path.suffix.lower() in META_ENDINGS else _nrrd
        try:
            stored = parse(path, file)
        except (ValueError, KeyError, OverflowError) as error:
            if isinstance(error, UnusableScanError):
                raise
            raise unreadable(f"its header is not understood ({summarise_error(error)})") from error
    _check_sizes(stored)
    return stored


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE or file.tell() > LONGEST_HEADER or b"\0" in line:
            raise unreadable("its header is no text, or longer than any header")
        yield line.decode("latin-1").strip("\r\n")


def _meta(path: Path, file: BinaryIO) -> Stored:
    fields = _meta_fields(file)
    _check_meta(fields)
    kind = fields["ElementType"].removeprefix("MET_")
    encoding = "raw" if _true(fields.get("BinaryData", "True")) else "text"
    limit, offset = None, file.tell()
    if _true(fields.get("CompressedData", "False")):
        encoding = "zlib"
        limit = int(fields["CompressedDataSize"]) if "CompressedDataSize" in fields else None
    files = (path,)
    if fields["ElementDataFile"].upper() != "LOCAL":
        files, offset = data_files(path, fields["ElementDataFile"], _lines(file)), 0
    if (skipped := int(fields.get("HeaderSize", "0"))) < -1:
        raise unreadable(f"its header says HeaderSize {skipped}")
    count = math.prod(_sizes(fields["DimSize"]))
    unsigned = kind.startswith("U")
    return Stored(files, max(offset, skipped), encoding, count, META_TYPES[kind], unsigned, limit)


def _check_meta(fields: dict[str, str]) -> None:
    """Refuse other than scalars on three axes, and what is not finite."""
    if fields.get("NDims") != "3":
        raise UnusableScanError(f"is not three-dimensional: NDims {fields.get('NDims')}")
    for count, keys in META_COUNTS.items():
        if any(len(_floats(fields[key])) != count for key in keys if key in fields):
            raise unreadable(
                f"its header does not give {count} finite numbers for one of {', '.join(keys)}"
            )
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        raise UnusableScanError("says no spacing")
    for key in META_COUNTS[9]:
        if key in fields and abs(np.linalg.det(np.reshape(_floats(fields[key]), (3, 3)))) < 1e-3:
            raise unreadable(f"its {key} gives axes that lie in one plane")
    if (channels := int(fields.get("ElementNumberOfChannels", "1"))) != 1:
        raise UnusableScanError(f"has {channels} components per voxel, a CT has one")


def _meta_fields(file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in _lines(file):
        if not line.strip():
            continue
        # Strict, since MetaIO would find another key or value in what is not of this form.
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\S[^\r]*?)\s*", line)
        if not found or found[1] in fields:
            raise unreadable(
                f"line {len(fields) + 1} of its header is not KEY = VALUE, or a key is there twice"
            )
        fields[found[1]] = found[2]
        if found[1] == "ElementDataFile":
            return fields
    raise unreadable("its header names no ElementDataFile")


def _true(text: str) -> bool:
    return text[:1].upper() in ("T", "1")


def _nrrd(path: Path, file: BinaryIO) -> Stored:
    lines = _lines(file)
    if not re.fullmatch(r"NRRD000[1-6]", next(lines, "")):
        raise unreadable("it does not begin as NRRD does")
    fields, rest = _nrrd_fields(lines)
    sizes = _sizes(fields["sizes"])
    if len(sizes) != int(fields["dimension"]):
        raise unreadable(
            f"its header gives {len(sizes)} sizes for {fields['dimension']} dimensions"
        )
    sheared = len(sizes) == 3 and _nrrd_shear(fields)
    said = fields["type"].lower()
    kind = re.sub(r"^(unsigned |signed |u)|( int|_t)$", "", said)
    encoding = ENCODINGS[fields["encoding"].lower()]
    files, offset = (path,), file.tell()
    if "datafile" in fields:
        files, offset = data_files(path, fields["datafile"], rest), 0
    skipped = int(fields.get("byteskip", "0"))
    if (
        skipped < -1
        or (skipped == -1 and encoding != "raw")
        or int(fields.get("lineskip", "0")) < 0
    ):
        raise unreadable("its header skips a negative number of bytes or lines")
    after = max(skipped, 0) if encoding == "raw" else 0
    unsigned = said.startswith("u")
    return Stored(
        files,
        offset + after,
        encoding,
        math.prod(sizes),
        NRRD_TYPES[kind],
        unsigned,
        sheared=sheared,
    )


def _nrrd_fields(lines: Iterator[str]) -> tuple[dict[str, str], Iterator[str]]:
    fields: dict[str, str] = {}
    for line in lines:
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
            return fields, lines
    return fields, iter(())


def _nrrd_shear(fields: dict[str, str]) -> bool:
    """Whether the axes are not at right angles. UnusableScanError when there is no spacing."""
    if "spacedirections" not in fields:
        if len(_floats(fields.get("spacings", ""))) != 3:
            raise UnusableScanError("says no spacing")
        return False
    vectors = [
        _floats(part.replace(",", " "))
        for part in re.findall(r"\(([^()]*)\)", fields["spacedirections"])
    ]
    if [len(vector) for vector in vectors] != [3, 3, 3]:
        raise UnusableScanError("says no spacing")
    axes = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    if abs(np.linalg.det(axes)) < 1e-3:
        raise unreadable("its space directions lie in one plane")
    return bool(np.abs(axes @ axes.T - np.eye(3)).max() > 1e-3)


def _floats(text: str) -> list[float]:
    """The numbers of a list, or nothing unless all are finite."""
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        return []
    return numbers if np.isfinite(numbers).all() else []


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split()]
    if not 1 <= len(sizes) <= 16 or not all(1 <= size < 1 << 31 for size in sizes):
        raise unreadable(f"its header gives the size {text[:60]}")
    return sizes


def _check_sizes(stored: Stored) -> None:
    """No more may be promised than the files can hold, so that no memory is asked for that they
    cannot fill.
    """
    with passing_errors():
        there = sum(path.stat().st_size for path in stored.files) - stored.offset
    wanted = stored.count * stored.size
    most = {
        "text": there * stored.size,
        "hex": there,
        "zlib": DEFLATE * there,
        "gzip": DEFLATE * there,
    }
    if stored.limit is not None and not 0 < stored.limit <= there:
        raise unreadable(f"it is cut short, {there} of {stored.limit} bytes are there")
    if stored.encoding == "bzip2":
        return  # counted where it is read: bzip2 has no useful bound
    if most.get(stored.encoding, there) < wanted:
        raise unreadable(
            f"it is cut short, {max(there, 0)} bytes cannot hold the {wanted} that its header "
            "promises"
        )
