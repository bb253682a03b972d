"""One DICOM file: its elements without the voxels, and whether all voxels are there.

Read here rather than by GDCM for two reasons: GDCM leaves voxels that are not in the file as the
memory was, and SimpleITK does not pass on what a file of many frames says of each frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Literal

from nnssl.data.refusals import UnusableScanError

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


def read_image(path: Path | str) -> Image:
    """Raises UnusableScanError for what is no DICOM image or is cut short, and OSError when the
    disk does not answer.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        try:
            return _Reader(file, size).image()
        except (struct.error, ValueError, RecursionError) as error:
            if isinstance(error, UnusableScanError):
                raise
            raise UnusableScanError(f"it is no DICOM image, or damaged ({error})") from error


class _Reader:
    def __init__(self, file: BufferedReader, size: int) -> None:
        self.file, self.size, self.count = file, size, 0
        self.explicit, self.order = True, "<"
        # bytes of voxels and fragments; 0 fragments: not compressed
        self.pixels: tuple[int, int] | None = None

    def image(self) -> Image:
        image = Image()
        self.file.seek(128)
        if self.file.read(4) != b"DICM":
            self.file.seek(0)
        if self.file.peek(2)[:2] == b"\x02\0":
            self._elements(image, self.size, meta=True)
        else:
            image.values[0x00020010] = self._guessed()
        syntax = image.text(0x00020010)
        if syntax == DEFLATED:
            raise UnusableScanError("it is a deflated DICOM file; convert it, e.g. with dcm2niix")
        self.explicit, self.order = syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"
        self._elements(image, self.size)
        self._check(image, syntax)
        return image

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
                self.pixels = self._fragments() if length == UNDEFINED else (length, 0)
                if length != UNDEFINED and self.file.tell() + length > self.size:
                    raise UnusableScanError("it is cut short, fewer bytes than the header promises")
            elif length == UNDEFINED or kind == b"SQ" or tag in OPENED:
                into.sequences[tag] = self._sequence(tag, kind, length, end, depth)
            else:
                self._value(into, tag, length, end)

    def _element(self) -> tuple[int, bytes, int]:
        self.count += 1
        if self.count > MOST_ELEMENTS:
            raise UnusableScanError(f"it holds more than {MOST_ELEMENTS} elements")
        group, element = struct.unpack(self.order + "HH", self.file.read(4))
        tag = group << 16 | element
        if not self.explicit or group == 0xFFFE:
            return tag, b"", struct.unpack(self.order + "I", self.file.read(4))[0]
        kind, short = struct.unpack(self.order + "2sH", self.file.read(4))
        if not (kind.isalpha() and kind.isupper()):
            raise UnusableScanError("it is damaged: an element has no type")
        return (
            tag,
            kind,
            struct.unpack(self.order + "I", self.file.read(4))[0] if kind in LONG else short,
        )

    def _value(self, into: Elements, tag: int, length: int, end: int) -> None:
        if self.file.tell() + length > end:
            raise UnusableScanError("it is cut short, fewer bytes than the header promises")
        if length <= LONGEST_VALUE:
            into.values.setdefault(tag, self.file.read(length))
        else:
            self.file.seek(length, 1)

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
                raise UnusableScanError("it is damaged: a sequence holds something else than items")
            item = Elements()
            self._elements(
                item, end if length == UNDEFINED else self._within(length, end), depth + 1
            )
            yield item

    def _within(self, length: int, end: int) -> int:
        stop = self.file.tell() + length
        if stop > end:
            raise UnusableScanError("it is cut short, fewer bytes than the header promises")
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
        raise UnusableScanError("it is cut short: its compressed voxels do not end")

    def _check(self, image: Image, syntax: str) -> None:
        order = "big" if self.order == ">" else "little"
        columns, rows, bits = (
            image.number(tag, 0, order) for tag in (0x00280011, 0x00280010, 0x00280100)
        )
        frames, image.components = (
            int(image.text(0x00280008) or 1),
            image.number(0x00280002, 1, order),
        )
        if self.pixels is None or min(columns, rows, bits, frames, image.components) < 1:
            raise UnusableScanError(
                f"it holds no image (modality {image.text(0x00080060)[:16] or 'not given'})"
            )
        image.size = (columns, rows, frames)
        wanted = (columns * rows * frames * image.components * bits + 7) // 8
        length, fragments = self.pixels
        if (syntax in NATIVE) == bool(fragments):
            raise UnusableScanError("it is damaged: its transfer syntax and its voxels disagree")
        if fragments and (fragments < frames or wanted > COMPRESSED * length):
            raise UnusableScanError(
                f"it is cut short: {length} compressed bytes in {fragments} pieces for {frames} "
                "frames"
            )
        if not fragments and length < wanted:
            raise UnusableScanError(
                f"it is cut short, {length} of {wanted} bytes of voxels are there"
            )
