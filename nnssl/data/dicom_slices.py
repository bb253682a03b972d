"""Slice information from the headers of DICOM files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np

from nnssl.data.dicom_file import BITS, EACH, MODALITY, SHARED, Elements, Image, read_image
from nnssl.data.refusals import SMALLEST_AXIS, UnusableScanError, check_name, passing_errors

UNREADABLE = "unreadable files"
IMAGE_TYPE, SERIES, INSTANCE, ECHO = 0x00080008, 0x0020000E, 0x00080018, 0x00180081
POSITION, ORIENTATION, PIXEL, SLOPE, INTERCEPT = (
    0x00200032,
    0x00200037,
    0x00280030,
    0x00281053,
    0x00281052,
)
PHOTOMETRIC = 0x00280004
STORED_BITS, SIGNED = 0x00280101, 0x00280103
PLANE, PLANE_ORIENTATION, MEASURES, RESCALING = 0x00209113, 0x00209116, 0x00289110, 0x00289145


@dataclass(frozen=True)
class Slice:
    """The header of one frame of a file. `position` in mm; `orientation`: of the rows, then
    columns.

    `pixel`: mm (x, y). `voxel_type`: BitsAllocated, BitsStored and PixelRepresentation, as their
    bytes. `photometric`: PhotometricInterpretation. `error`: why only the name is known.
    """

    name: str
    series: str
    error: str = ""
    frame: int = 0
    instance: str = ""
    modality: str = ""
    echo: str = ""
    image_type: str = ""
    size: tuple[int, ...] = ()
    components: int = 0
    pixel: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    rescaling: tuple[str, ...] = ()
    voxel_type: tuple[bytes, ...] = ()
    photometric: str = ""


def read_slices(paths: Sequence[Path]) -> Iterator[Slice]:
    """One per frame; a file that cannot be read is a slice with an error. PassingError when the
    disk does not respond.
    """
    for path in paths:
        try:
            yield from _slices_in(path)
        except UnusableScanError as error:
            reason = str(error).removeprefix("cannot be read: ")
            yield Slice(path.name, UNREADABLE, reason, instance=path.name)


def _slices_in(path: Path) -> Iterator[Slice]:
    with passing_errors():
        image = read_image(check_name(path))
    return _frames(path.name, image)


@dataclass(frozen=True)
class _Frame:
    """The headers that speak of one frame: its own, the one that all share, and the file's."""

    own: Elements
    shared: Elements
    file: Image

    def text(self, sequence: int, tag: int) -> str:
        """The value of `tag` in the nearest of them; the first two have it in `sequence`."""
        nested = (self.own.first(sequence), self.shared.first(sequence), self.file)
        return next((elements.text(tag) for elements in nested if tag in elements.values), "")

    def numbers(self, sequence: int, tag: int, count: int) -> tuple[float, ...]:
        return _finite_numbers(self.text(sequence, tag), count)


def _frames(name: str, image: Image) -> Iterator[Slice]:
    """A slice for each frame; values absent for a frame are taken from the whole file.

    Frames of which none is described have no places, and are refused whatever they show: one slice
    without a position stands for all of them, which a small file may promise by the million.
    """
    _check_frames(image)
    shared = image.first(SHARED)
    if image.size[2] > 1 and EACH not in image.sequences:
        yield replace(_slice(name, 0, _Frame(Elements(), shared, image)), position=())
        return
    for number, own in enumerate(_descriptions(image)):
        yield _slice(name, number, _Frame(own, shared, image))


def _check_frames(image: Image) -> None:
    columns, rows, count = image.size
    if count > 1 and min(columns, rows) < SMALLEST_AXIS:
        raise UnusableScanError(
            f"it has {count} frames of {columns} x {rows} pixels, at least {SMALLEST_AXIS} x "
            f"{SMALLEST_AXIS} are needed"
        )


def _descriptions(image: Image) -> Iterable[Elements]:
    """The per-frame headers of the file."""
    *_, count = image.size
    each = image.sequences.get(EACH, [])
    if len(each) not in (0, count):
        raise UnusableScanError(f"it has {count} frames but describes {len(each)}")
    return each or repeat(Elements(), count)


def _slice(name: str, number: int, frame: _Frame) -> Slice:
    """Frame `number` of the file `name`."""
    image = frame.file
    return Slice(
        name=name,
        series=image.text(SERIES) or "no series UID",
        frame=number,
        instance=f"{image.text(INSTANCE) or name}/{number}",
        modality=image.text(MODALITY),
        echo=image.text(ECHO),
        image_type=image.text(IMAGE_TYPE).upper(),
        size=image.size,
        components=image.components,
        pixel=frame.numbers(MEASURES, PIXEL, 2)[::-1],
        position=frame.numbers(PLANE, POSITION, 3),
        orientation=frame.numbers(PLANE_ORIENTATION, ORIENTATION, 6),
        rescaling=(frame.text(RESCALING, SLOPE), frame.text(RESCALING, INTERCEPT)),
        voxel_type=tuple(image.values.get(tag, b"") for tag in (BITS, STORED_BITS, SIGNED)),
        photometric=image.text(PHOTOMETRIC),
    )


def _finite_numbers(text: str, count: int) -> tuple[float, ...]:
    """The numbers of a DICOM list, or nothing when they are not `count` finite numbers."""
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()
