"""DICOM: tell the series of a folder apart by their headers, judge them, and read them in order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnssl.data.dicom_slices import Slice, read_slices
from nnssl.data.orientation import Scan, unify
from nnssl.data.refusals import PassingError, UnusableScanError, itk_error, passing_errors
from nnssl.data.stacks import arrange, normal_of, straighten
from nnssl.files import fingerprint, read_json, write_json
from nnssl.types import Spacing

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
VERSION = 2  # goes up when a change in these rules makes kept answers wrong
READ = ("CT", "MR")  # modalities
AIR = -1024.0  # HU of what a tilted gantry did not scan

LOCALIZER_WORDS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
REFORMAT_WORDS = {"REFORMATTED", "MPR", "CPR", "MIP", "MINIP", "PROJECTION", "VRT", "VOLREN"}


@dataclass(frozen=True)
class Series:
    """Slices that make one stack: file names in order along the stack, spacing (z, y, x), or why it
    is left out.

    `frames`: of the files, where one has several. `positions` where the slices make no straight and
    even grid; `note` says so then.
    """

    uid: str
    files: tuple[str, ...]
    spacing: Spacing = ()
    reason: str = ""
    modality: str = ""
    frames: tuple[int, ...] = ()
    orientation: tuple[float, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    note: str = ""

    def signature(self, folder: Path | str) -> list:
        """What changes when one of its files changes."""
        return [
            *_signature([Path(folder, name) for name in dict.fromkeys(self.files)]),
            self.reason,
        ]


def looks_like_dicom(path: Path) -> bool:
    """By its ending, or by the letters that stand at byte 128 of a DICOM file. Nothing but a file
    is opened.
    """
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in DICOM_ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_in(folder: Path | str, cache: Path | None = None) -> dict[str, Series]:
    """The series of one folder by UID. With `cache` the answer is kept there until a file of the
    folder changes.

    Raises PassingError when a file cannot be opened: without it the others might look whole.
    """
    folder = Path(folder)
    with passing_errors():
        paths = sorted(
            p for p in folder.iterdir() if not p.name.startswith(".") and looks_like_dicom(p)
        )
        signature = _signature(paths)
    if cache is None:
        return _by_uid(judge(read_slices(paths)))
    place = cache / "survey" / f"{fingerprint(['dicom', str(folder)])}.json"
    kept = _kept(place, signature)
    if kept is None:
        kept = judge(read_slices(paths))
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
    known: list[dict] = [
        {key: _tuples(value) for key, value in one.items()} for one in content["series"]
    ]
    return [Series(**one) for one in known]


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def judge(slices: Iterable[Slice]) -> list[Series]:
    """Group slices to stacks and order each. A UID that holds several stacks (size, orientation)
    names them #2, #3.
    """
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
    return (
        tuple(round(v, 3) for v in one.orientation),
        tuple(round(v, 4) for v in one.pixel),
        one.size,
        one.components,
        one.modality,
        one.echo if one.modality == "MR" else "",
        bool(_words(one) & LOCALIZER_WORDS),
        bool(one.position),
    )


def _words(one: Slice) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", one.image_type))


def _judge_stack(uid: str, stack: list[Slice]) -> Series:
    # the same slice copied under another name
    stack = list({one.instance: one for one in stack}.values())
    first, names = stack[0], tuple(one.name for one in stack)
    try:
        _check_kind(stack)
        positions, orientation = (
            np.array([one.position for one in stack]),
            np.array(first.orientation),
        )
        found = arrange(positions, orientation, table=first.modality == "CT")
    except UnusableScanError as refusal:
        return Series(
            uid, tuple(dict.fromkeys(names)), reason=str(refusal), modality=first.modality
        )
    return Series(
        uid,
        tuple(names[i] for i in found.order),
        (found.spacing, *first.pixel[::-1]),
        modality=first.modality,
        frames=tuple(stack[i].frame for i in found.order) if first.size[2] > 1 else (),
        orientation=first.orientation,
        positions=tuple(stack[i].position for i in found.order) if found.note else (),
        note=found.note,
    )


def _check_kind(stack: list[Slice]) -> None:
    """Refuse what is not a stack of slices of a scan."""
    one = stack[0]
    if one.error:
        raise UnusableScanError(
            f"{len(stack)} files cannot be read as DICOM images; the first: {one.error}"
        )
    if one.modality not in READ:
        raise UnusableScanError(f"is {one.modality or 'of no modality'}, not {' or '.join(READ)}")
    if words := _words(one) & LOCALIZER_WORDS:
        raise UnusableScanError(f"is a localizer: image type {'/'.join(words)}")
    if words := _words(one) & REFORMAT_WORDS:
        raise UnusableScanError(
            f"is a reformat, not the primary stack: image type {'/'.join(sorted(words))}"
        )
    if one.components != 1:
        raise UnusableScanError(f"has {one.components} components per voxel, a CT has one")
    if not (one.position and one.orientation):
        raise UnusableScanError(
            "has no ImagePositionPatient or ImageOrientationPatient, so its slices cannot be placed"
        )
    if not one.pixel or min(one.pixel) <= 0:
        raise UnusableScanError(
            f"says no spacing: PixelSpacing {one.pixel or 'is absent or no two numbers'}"
        )
    axes = np.reshape(one.orientation, (2, 3))
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-2:
        raise UnusableScanError(
            "has an ImageOrientationPatient whose directions are not at right angles"
        )
    if one.size[2] > 1 and len({each.rescaling for each in stack}) > 1:
        raise UnusableScanError(
            "is a multi-frame file that rescales each frame differently; convert it to NIfTI"
        )


def require_modality(folder: Path | str, uid: str, in_hu: bool, cache: Path | None = None) -> None:
    """UnusableScanError for a series that is not CT where CT is asked for."""
    series = series_in(folder, cache).get(uid)
    if series and not series.reason and in_hu and series.modality != "CT":
        raise UnusableScanError(
            f"is {series.modality}, not CT; for images that are not CT: --no-hu"
        )


def check_files(folder: Path | str, uid: str, cache: Path | None = None) -> None:
    """Read every file of a series to its end, so that what fails later is not the disk."""
    series = series_in(folder, cache).get(uid)
    with passing_errors():
        for name in dict.fromkeys(series.files if series and not series.reason else ()):
            with Path(folder, name).open("rb") as file:
                while file.read(1 << 20):
                    pass


def read_series(folder: Path | str, uid: str, cache: Path | None = None) -> Scan:
    """One series on a straight grid, its axes in the patient's order. Raises UnusableScanError or
    PassingError.
    """
    series = series_in(folder, cache).get(uid)
    if series is None:
        raise UnusableScanError(f"the series is no longer in {folder}")
    if series.reason:
        raise UnusableScanError(series.reason)
    try:
        voxels, origin = _voxels(Path(folder), series)
    except RuntimeError as error:
        raise error if isinstance(error, PassingError) else itk_error(error) from error
    orientation = np.array(series.orientation)
    if series.positions:
        fill = AIR if series.modality == "CT" else float(voxels.min())
        _, height, width = series.spacing
        positions, pixel = np.array(series.positions), (width, height)
        voxels, origin = straighten(voxels, positions, orientation, pixel, series.spacing[0], fill)
    direction = np.column_stack([orientation[:3], orientation[3:], normal_of(orientation)])
    return unify(Scan(voxels, series.spacing, note=series.note), direction, origin)


def _voxels(folder: Path, series: Series) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [Z Y X] in the order of the stack, rescaled as its files say; its origin where they give one."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    if not series.frames:
        stack = SimpleITK.ImageSeriesReader()
        stack.SetImageIO("GDCMImageIO")
        stack.SetFileNames([str(folder / name) for name in series.files])
        image = stack.Execute()  # the view below is of its memory
        voxels = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
        return voxels, np.array(image.GetOrigin())
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    frames = {}
    for name in dict.fromkeys(series.files):
        reader.SetFileName(str(folder / name))
        frames[name] = SimpleITK.GetArrayFromImage(reader.Execute())
    pairs = zip(series.files, series.frames, strict=True)
    return np.stack([frames[name][number] for name, number in pairs]).astype(np.float32), None
