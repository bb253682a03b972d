"""DICOM files written element by element: many frames in one file, where each frame lies, and
values as they are stored. SimpleITK writes neither.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LONG = ("OB", "OW", "SQ", "UN")


def element(tag: int, kind: str, value: bytes | str) -> bytes:
    """Explicit VR, little endian."""
    if isinstance(value, str):
        value = value.encode()
        value += b" " * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, kind.encode())
    length = struct.pack("<HI", 0, len(value)) if kind in LONG else struct.pack("<H", len(value))
    return head + length + value


def unsigned_short(tag: int, value: int) -> bytes:
    return element(tag, "US", struct.pack("<H", value))


def sequence(tag: int, *items: bytes) -> bytes:
    return element(
        tag, "SQ", b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    )


def numbers(values: tuple[float, ...]) -> str:
    return "\\".join(f"{value:g}" for value in values)


def write_stored_slice(
    path: Path, stored: np.ndarray, number: int, intercept: str, slope: str
) -> None:
    """Slice `number` of an axial CT series, 2 mm apart: unsigned values `stored` [Y X], and
    how they are rescaled.
    """
    uid = f"1.2.3.4.{number + 1}"
    meta = element(0x00020002, "UI", CT) + element(0x00020003, "UI", uid)
    meta += element(0x00020010, "UI", EXPLICIT_LITTLE_ENDIAN)
    body = [
        *(element(0x00080016, "UI", CT), element(0x00080018, "UI", uid)),
        *(element(0x00080060, "CS", "CT"), element(0x0020000D, "UI", "1.2.3")),
        element(0x0020000E, "UI", "1.2.3.4"),
        element(0x00200032, "DS", f"-10\\-20\\{100 + 2 * number}"),
        element(0x00200037, "DS", "1\\0\\0\\0\\1\\0"),
        *(unsigned_short(0x00280002, 1), element(0x00280004, "CS", "MONOCHROME2")),
        *(unsigned_short(0x00280010 + axis, size) for axis, size in enumerate(stored.shape)),
        element(0x00280030, "DS", "1.5\\1.5"),
        *(unsigned_short(0x00280100, 16), unsigned_short(0x00280101, 16)),
        *(unsigned_short(0x00280102, 15), unsigned_short(0x00280103, 0)),
        *(element(0x00281052, "DS", intercept), element(0x00281053, "DS", slope)),
        element(0x7FE00010, "OW", stored.astype("<u2").tobytes()),
    ]
    write_dicom(path, meta, body)


def write_dicom(path: Path, meta: bytes, body: list[bytes]) -> None:
    head = element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + head + b"".join(body))


def write_frames(
    path: Path, hu: np.ndarray, positions: list[tuple[float, ...]], orientation: tuple[float, ...]
) -> Path:
    """Enhanced CT of the frames `hu` [N Y X], 1.5 mm a pixel, stored with the intercept -1024."""
    plane = [
        sequence(0x00209113, element(0x00200032, "DS", numbers(position))) for position in positions
    ]
    shared = (
        sequence(0x00209116, element(0x00200037, "DS", numbers(orientation)))
        + sequence(
            0x00289110, element(0x00180050, "DS", "2") + element(0x00280030, "DS", "1.5\\1.5")
        )
        + sequence(0x00289145, element(0x00281052, "DS", "-1024") + element(0x00281053, "DS", "1"))
    )
    meta = element(0x00020002, "UI", ENHANCED_CT) + element(0x00020003, "UI", "1.2.3.9")
    meta += element(0x00020010, "UI", EXPLICIT_LITTLE_ENDIAN)
    body = [
        element(0x00080008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        *(
            element(0x00080016, "UI", ENHANCED_CT),
            element(0x00080018, "UI", "1.2.3.9"),
            element(0x00080060, "CS", "CT"),
        ),
        *(element(0x0020000D, "UI", "1.2.3"), element(0x0020000E, "UI", "1.2.3.4")),
        *(
            unsigned_short(0x00280002, 1),
            element(0x00280004, "CS", "MONOCHROME2"),
            element(0x00280008, "IS", str(len(hu))),
        ),
        *(unsigned_short(0x00280010, hu.shape[1]), unsigned_short(0x00280011, hu.shape[2])),
        *(
            unsigned_short(0x00280100, 16),
            unsigned_short(0x00280101, 16),
            unsigned_short(0x00280102, 15),
            unsigned_short(0x00280103, 0),
        ),
        sequence(0x52009229, shared),
        sequence(0x52009230, *plane),
        element(0x7FE00010, "OW", (hu.astype(np.int32) + 1024).astype("<u2").tobytes()),
    ]
    write_dicom(path, meta, body)
    return path
