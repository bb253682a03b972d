"""One DICOM file: its elements without the voxels, and whether all voxels are there.

Read here rather than by GDCM for two reasons: GDCM leaves voxels that are not in the file as the
memory was, and SimpleITK does not pass on what a file of many frames says of each frame.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Literal

from nnssl.data.refusals import UnusableScanError

SYNTAX, MODALITY = 0x00020010, 0x00080060
COMPONENTS, FRAMES, ROWS, COLUMNS, BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
PIXELS = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"}
LONGEST_VALUE = 1 << 12  # bytes; what we look at is short
MOST_ELEMENTS = 1_000_000
DEEPEST = 8
COMPRESSED = 5_000  # to 1: JPEG 2000 makes an empty slice that small
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
IMPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
SHARED, EACH = 0x52009229, 0x52009230
# Sequences of a multi-frame file that say where a frame lies: position, orientation, pixel
# measures, rescaling.
OPENED = {SHARED, EACH, 0x00209113, 0x00209116, 0x00289110, 0x00289145}


@dataclass
class Elements:
    """Short values by tag, as bytes, and the opened sequences as lists of Elements."""

    values: dict[int, bytes] = field(default_factory=dict)
    sequences: dict[int, list[Elements]] = field(default_factory=dict)

    def text(self, tag: int) -> str:
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def number(self, tag: int, default: int, order: Literal["little", "big"] = "little") -> int:
        """An unsigned short (VR US)."""
        return int.from_bytes(self.values[tag][:2], order) if tag in self.values else default

    def first(self, *tags: int) -> Elements:
        """The first item of a sequence in a sequence; empty when one is absent."""
        found = self
        for tag in tags:
            found = (found.sequences.get(tag) or [Elements()])[0]
        return found


@dataclass
class Image(Elements):
    """An image file: `size` in voxels (columns, rows, frames)."""

    size: tuple[int, int, int] = (0, 0, 0)
    components: int = 1

    def bytes(self, bits: int) -> int:
        """The bytes of all voxels, of `bits` each, not compressed."""
        return (math.prod(self.size) * self.components * bits + 7) // 8


def read_image(path: Path | str) -> Image:
    """Raises UnusableScanError for a file that is not a DICOM image or is truncated, and OSError
    when the disk does not respond.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        try:
            return _Reader(file, size).image()
        except (struct.error, ValueError, RecursionError) as error:
            if isinstance(error, UnusableScanError):
                raise
            raise UnusableScanError(
                f"it is not a DICOM image, or it is damaged ({error})"
            ) from error


class _Reader:
    def __init__(self, file: BufferedReader, size: int) -> None:
        self.file, self.size, self.count = file, size, 0
        self.explicit, self.order = True, "<"
        # bytes of voxels and fragments; 0 fragments: not compressed
        self.pixels: tuple[int, int] | None = None

    def image(self) -> Image:
        image = Image()
        self._file_meta(image)
        syntax = image.text(SYNTAX)
        self._follow(syntax)
        self._elements(image, self.size)
        self._check(image, syntax)
        return image

    def _follow(self, syntax: str) -> None:
        """Read by this transfer syntax from here on."""
        if syntax == DEFLATED:
            raise UnusableScanError("it is a deflated DICOM file; convert it, e.g. with dcm2niix")
        self.explicit, self.order = syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"

    def _file_meta(self, image: Image) -> None:
        """Read group 2, which names the transfer syntax; without one, guess it."""
        self.file.seek(128)
        if self.file.read(4) != b"DICM":
            self.file.seek(0)
        if self.file.peek(2)[:2] == b"\x02\0":
            self._elements(image, self.size, meta=True)
        else:
            image.values[SYNTAX] = self._guessed()

    def _guessed(self) -> bytes:
        """The transfer syntax of a file that does not name it, by its first element."""
        start = self.file.peek(8)[:8]
        if len(start) < 8 or start[:2] != b"\x08\0":
            raise UnusableScanError("it is no DICOM file")
        return b"1.2.840.10008.1.2.1" if start[4:6].isalpha() else IMPLICIT.encode()

    def _elements(self, into: Elements, end: int, depth: int = 0, meta: bool = False) -> None:
        """Read up to `end`, or to the mark of an item's end. `meta`: only group 2, which is always
        explicit.
        """
        while self.file.tell() + 8 <= end and self.pixels is None:
            if meta and self.file.peek(2)[:2] != b"\x02\0":
                return
            tag, kind, length = self._element()
            if tag in (ITEM_END, SEQUENCE_END):
                return
            if tag == PIXELS and depth == 0:
                self.pixels = self._voxels(length)
            elif tag == PIXELS and length == UNDEFINED:  # of an icon, compressed
                self._fragments()
            elif length == UNDEFINED or kind == b"SQ" or tag in OPENED:
                into.sequences[tag] = self._sequence(tag, kind, length, end, depth)
            else:
                self._value(into, tag, length, end)

    def _element(self) -> tuple[int, bytes, int]:
        """Tag, type (nothing where the file names none) and length in bytes of the next element."""
        self.count += 1
        if self.count > MOST_ELEMENTS:
            raise UnusableScanError(f"it holds more than {MOST_ELEMENTS} elements")
        group, element = self._unpack("HH")
        tag = group << 16 | element
        if not self.explicit or group == 0xFFFE:
            return tag, b"", self._unpack("I")[0]
        return tag, *self._kind_and_length()

    def _kind_and_length(self) -> tuple[bytes, int]:
        kind, length = self._unpack("2sH")
        if not (kind.isalpha() and kind.isupper()):
            raise UnusableScanError("it is damaged: an element has no type")
        return kind, self._unpack("I")[0] if kind in LONG else length

    def _unpack(self, form: str) -> tuple:
        """The next 4 bytes by a format of `struct`, in the file's order of bytes."""
        return struct.unpack(self.order + form, self.file.read(4))

    def _value(self, into: Elements, tag: int, length: int, end: int) -> None:
        self._within(length, end)
        if length <= LONGEST_VALUE:
            into.values.setdefault(tag, self.file.read(length))
        else:
            self.file.seek(length, 1)

    def _voxels(self, length: int) -> tuple[int, int]:
        """Bytes and number of the compressed pieces; 0 pieces where they are not compressed."""
        if length == UNDEFINED:
            return self._fragments()
        self._within(length, self.size)
        return length, 0

    def _sequence(self, tag: int, kind: bytes, length: int, end: int, depth: int) -> list[Elements]:
        if depth >= DEEPEST:
            raise UnusableScanError(f"it nests sequences more than {DEEPEST} deep")
        if length != UNDEFINED:
            end = self._within(length, end)
            if tag not in OPENED:
                self.file.seek(end)
                return []
        explicit, self.explicit = self.explicit, self.explicit and kind != b"UN"
        items = list(self._items(end, depth))
        self.explicit = explicit
        return items if tag in OPENED else []

    def _items(self, end: int, depth: int) -> Iterator[Elements]:
        while self.file.tell() + 8 <= end:
            tag, _, length = self._element()
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise UnusableScanError(
                    "it is damaged: a sequence holds something other than items"
                )
            item = Elements()
            item_end = end if length == UNDEFINED else self._within(length, end)
            self._elements(item, item_end, depth + 1)
            yield item

    def _within(self, length: int, end: int) -> int:
        """Where `length` bytes from here end, which must not be beyond `end`."""
        stop = self.file.tell() + length
        if stop > end:
            raise UnusableScanError("it is truncated, fewer bytes than the header promises")
        return stop

    def _fragments(self) -> tuple[int, int]:
        """Bytes and number of the compressed pieces, the table of offsets left out."""
        lengths = []
        while self.file.tell() + 8 <= self.size:
            tag, _, length = self._element()
            if tag == SEQUENCE_END:
                return sum(lengths[1:]), len(lengths) - 1
            if tag != ITEM:
                break
            self.file.seek(self._within(length, self.size))
            lengths.append(length)
        raise UnusableScanError("it is truncated: its compressed voxels do not end")

    def _check(self, image: Image, syntax: str) -> None:
        """Note the image's size; refuse files without an image, or with too few voxels."""
        order = "big" if self.order == ">" else "little"
        columns, rows, bits = (image.number(tag, 0, order) for tag in (COLUMNS, ROWS, BITS))
        frames = int(image.text(FRAMES) or 1)
        image.components = image.number(COMPONENTS, 1, order)
        if self.pixels is None or min(columns, rows, bits, frames, image.components) < 1:
            raise UnusableScanError(
                f"it holds no image (modality {image.text(MODALITY)[:16] or 'not given'})"
            )
        image.size = (columns, rows, frames)
        _check_length(image, bits, *self.pixels, is_native=syntax in NATIVE)


def _check_length(image: Image, bits: int, length: int, fragments: int, is_native: bool) -> None:
    """Refuse voxels of `length` bytes in `fragments` compressed pieces that cannot be the image."""
    wanted = image.bytes(bits)
    if is_native == bool(fragments):
        raise UnusableScanError("it is damaged: its transfer syntax and its voxels disagree")
    if fragments:
        _check_compressed(length, fragments, image.size[2], wanted)
    elif length < wanted:
        raise UnusableScanError(f"it is truncated, {length} of {wanted} bytes of voxels are there")


def _check_compressed(length: int, fragments: int, frames: int, wanted: int) -> None:
    """`wanted` bytes of so many frames from `length` compressed ones."""
    if fragments < frames or wanted > COMPRESSED * length:
        raise UnusableScanError(
            f"it is truncated: {length} compressed bytes in {fragments} pieces for {frames} frames"
        )
