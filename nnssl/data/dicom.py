"""DICOM: tell the series of a folder apart by their headers, judge their geometry, and read them in order.

Tilt and uneven spacing are measured on ImagePositionPatient and ImageOrientationPatient. What other tags say
(GantryDetectorTilt, SliceThickness, InstanceNumber) is often wrong after anonymisation and is not looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnssl.data.refusals import SMALLEST_AXIS, RefusedError, check_name, short
from nnssl.files import fingerprint, read_json, write_json
from nnssl.types import Spacing

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
TILT = 1.0  # degrees between the stack's direction and the slices' normal: 5 mm over a stack of 300 mm
OBLIQUE = 10.0  # degrees from the table's axis; a scanner moves the table, so other stacks are reformats
UNEVEN = 0.1  # of the slice spacing, and in mm at least: positions are often rounded to 0.1 mm
VERSION = 1  # goes up when a change in these rules makes kept answers wrong

LOCALIZER_WORDS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
REFORMAT_WORDS = {"REFORMATTED", "MPR", "CPR", "MIP", "MINIP", "PROJECTION", "VRT", "VOLREN"}

MODALITY, IMAGE_TYPE, SERIES, INSTANCE = "0008|0060", "0008|0008", "0020|000e", "0008|0018"
POSITION, ORIENTATION = "0020|0032", "0020|0037"


@dataclass(frozen=True)
class Slice:
    """What the header of one file says. `position` in mm; `orientation`: direction of the rows, then columns.

    `error`: why there is no more than the name.
    """

    name: str
    series: str
    error: str = ""
    instance: str = ""
    modality: str = ""
    image_type: str = ""
    size: tuple[int, ...] = ()
    components: int = 0
    pixel: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """Slices that make one stack: file names in order along the stack, spacing (z, y, x), or why it is left out."""

    uid: str
    files: tuple[str, ...]
    spacing: Spacing = ()
    reason: str = ""

    def signature(self, folder: Path | str) -> list:
        """What changes when one of its files changes."""
        return [*_signature([Path(folder, name) for name in self.files]), self.reason]


def looks_like_dicom(path: Path) -> bool:
    """By its ending, or by the letters that stand at byte 128 of a DICOM file."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in DICOM_ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_in(folder: Path | str, cache: Path | None = None) -> dict[str, Series]:
    """The series of one folder by UID. With `cache` the answer is kept there until a file of the folder changes."""
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file() and looks_like_dicom(p))
    if cache is None:
        return _by_uid(judge(_headers(paths)))
    place = cache / "survey" / f"{fingerprint(['dicom', str(folder)])}.json"
    signature = _signature(paths)
    kept = _kept(place, signature)
    if kept is None:
        kept = judge(_headers(paths))
        write_json(place, {"signature": signature, "series": [asdict(series) for series in kept]})
    return _by_uid(kept)


def _by_uid(series: Iterable[Series]) -> dict[str, Series]:
    return {one.uid: one for one in series}


def _signature(paths: Sequence[Path]) -> list:
    states = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in paths]
    return [VERSION, fingerprint(states)]


def _kept(place: Path, signature: list) -> list[Series] | None:
    try:
        content = read_json(place)
    except (FileNotFoundError, ValueError):
        return None
    if content["signature"] != signature:
        return None
    return [
        Series(**{**one, "files": tuple(one["files"]), "spacing": tuple(one["spacing"])}) for one in content["series"]
    ]


def _headers(paths: Sequence[Path]) -> list[Slice]:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    return [_header(reader, path) for path in paths]


def _header(reader, path: Path) -> Slice:
    try:
        reader.SetFileName(check_name(path))
        reader.ReadImageInformation()
    except (RuntimeError, RefusedError) as error:
        return Slice(path.name, "unreadable files", short(error), instance=path.name)
    tags = {tag: reader.GetMetaData(tag).strip() for tag in reader.GetMetaDataKeys()}
    return Slice(
        name=path.name,
        series=tags.get(SERIES) or "no series UID",
        instance=tags.get(INSTANCE, path.name),
        modality=tags.get(MODALITY, ""),
        image_type=tags.get(IMAGE_TYPE, "").upper(),
        size=tuple(reader.GetSize()),
        components=reader.GetNumberOfComponents(),
        pixel=tuple(reader.GetSpacing()[:2]),
        position=_numbers(tags.get(POSITION, ""), 3),
        orientation=_numbers(tags.get(ORIENTATION, ""), 6),
    )


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """The numbers of a DICOM list, or nothing when they are not `count` finite numbers."""
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def judge(slices: Iterable[Slice]) -> list[Series]:
    """Group slices to stacks and order each. A UID that holds several stacks (size, orientation) names them #2, #3."""
    groups: dict[str, dict[tuple, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for one in slices:
        groups[one.series][_stack(one)].append(one)
    series = []
    for uid, stacks in groups.items():
        for number, stack in enumerate(sorted(stacks.values(), key=len, reverse=True), start=1):
            series.append(_judge_stack(uid if number == 1 else f"{uid}#{number}", stack))
    return series


def _stack(one: Slice) -> tuple:
    """Slices with the same answer can be one volume."""
    rounded = (tuple(round(v, 3) for v in one.orientation), tuple(round(v, 4) for v in one.pixel))
    return (*rounded, one.size, one.components, one.modality, bool(_words(one) & LOCALIZER_WORDS), bool(one.position))


def _words(one: Slice) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", one.image_type))


def _judge_stack(uid: str, stack: list[Slice]) -> Series:
    stack = list({one.instance: one for one in stack}.values())  # the same slice copied under another name
    names = tuple(one.name for one in stack)
    try:
        _check_kind(stack[0], len(stack))
        order, spacing = arrange(np.array([one.position for one in stack]), np.array(stack[0].orientation), len(stack))
    except RefusedError as refusal:
        return Series(uid, names, reason=str(refusal))
    return Series(uid, tuple(names[i] for i in order), (spacing, *stack[0].pixel[::-1]))


def _check_kind(one: Slice, count: int) -> None:
    """Refuse what is not a stack of CT slices, by the header of one slice."""
    if one.error:
        raise RefusedError(f"{count} files cannot be read as DICOM images; the first: {one.error}")
    if one.modality != "CT":
        raise RefusedError(f"is {one.modality or 'of no modality'}, not CT")
    if words := _words(one) & LOCALIZER_WORDS:
        raise RefusedError(f"is a localizer: image type {'/'.join(words)}")
    if words := _words(one) & REFORMAT_WORDS:
        raise RefusedError(f"is a reformat, not the primary stack: image type {'/'.join(sorted(words))}")
    if len(one.size) > 2 and one.size[2] > 1:
        raise RefusedError(f"is a multi-frame file of {one.size[2]} frames; convert it to NIfTI, e.g. with dcm2niix")
    if one.components != 1:
        raise RefusedError(f"has {one.components} components a voxel, a CT has one")
    if not (one.position and one.orientation):
        raise RefusedError("has no ImagePositionPatient or ImageOrientationPatient, so its slices cannot be placed")


def arrange(positions: np.ndarray, orientation: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Order of the slices along their normal, and their spacing in mm.

    `positions` [N 3] and `orientation` [6] in the patient's frame, as DICOM gives them. Raises RefusedError for
    reformats, tilted gantries, and too few or unevenly spaced slices.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= max(np.linalg.norm(normal), 1e-9)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    off_axis = _degrees(abs(normal[2]))
    path = positions[order[-1]] - positions[order[0]]
    tilt = _degrees(abs(path @ normal) / np.linalg.norm(path)) if np.linalg.norm(path) > 0 else 0.0
    if off_axis > 45 or (off_axis > OBLIQUE and tilt <= TILT):
        raise RefusedError(
            f"is a reformat, not the primary stack: its slices are turned by {off_axis:.0f} degrees from axial"
        )
    if count < SMALLEST_AXIS:
        raise RefusedError(f"has too few slices: {count}, at least {SMALLEST_AXIS} are needed")
    gaps = np.diff(along[order])
    spacing = float(gaps.mean())
    _check_gaps(gaps)
    if tilt > TILT:
        raise RefusedError(f"has a tilted gantry: its slices are shifted by {tilt:.1f} degrees against their normal")
    _check_line(positions[order], path)
    return order, spacing


def _check_gaps(gaps: np.ndarray) -> None:
    mean = float(gaps.mean())
    if gaps.min() < 0.01:
        raise RefusedError(f"has several slices at the same position ({int((gaps < 0.01).sum())} of them)")
    if np.abs(gaps - mean).max() > max(UNEVEN, UNEVEN * mean):
        raise RefusedError(f"is unevenly spaced: {gaps.min():.3g} to {gaps.max():.3g} mm between slices")


def _check_line(positions: np.ndarray, path: np.ndarray) -> None:
    """Slices beside the line from the first to the last: the field of view moved."""
    expected = positions[0] + np.linspace(0, 1, len(positions))[:, None] * path
    direction = path / np.linalg.norm(path)
    off = positions - expected
    aside = np.linalg.norm(off - (off @ direction)[:, None] * direction, axis=1).max()
    if aside > 1.0:
        raise RefusedError(f"is unevenly placed: slices lie up to {aside:.1f} mm beside the stack's axis")


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def read_series(folder: Path | str, uid: str, cache: Path | None = None) -> tuple[np.ndarray, Spacing]:
    """HU of one series as float32 [Z Y X], and spacing (z, y, x) in mm. Raises RefusedError."""
    import SimpleITK

    series = series_in(folder, cache).get(uid)
    if series is None:
        raise RefusedError(f"the series is no longer in {folder}")
    if series.reason:
        raise RefusedError(series.reason)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(Path(folder, name)) for name in series.files])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise RefusedError(f"cannot be read: {short(error)}") from error
    return SimpleITK.GetArrayViewFromImage(image).astype(np.float32), series.spacing
