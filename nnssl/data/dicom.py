"""DICOM: the series of a folder, identified by their headers and read in slice order."""

from __future__ import annotations

import stat
from dataclasses import asdict
from pathlib import Path

import numpy as np

from nnssl.data.dicom_slices import read_slices
from nnssl.data.dicom_stacks import VERSION, Series, judge, signature_of
from nnssl.data.orientation import Scan, unify
from nnssl.data.refusals import PassingError, UnusableScanError, itk_error, passing_errors
from nnssl.data.stacks import normal_of, straighten
from nnssl.files import NOWHERE, blocks, fingerprint, read_json, write_json

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
AIR = -1024.0  # HU of what a tilted gantry did not scan


def looks_like_dicom(path: Path) -> bool:
    """By its file extension, or by the DICM magic at byte 128. Only regular files are opened.

    Raises OSError for a file that is there, but cannot be looked at.
    """
    if path.name.upper() == "DICOMDIR" or not _is_regular(path):
        return False
    return path.suffix.lower() in DICOM_ENDINGS or _begins_as_dicom(path)


def _is_regular(path: Path) -> bool:
    """False for broken links, as `Path.is_file` says; OSError where it would say the same of a file
    that this user may not look at.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in NOWHERE:
            return False
        raise


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_in(folder: Path | str, cache: Path | None = None) -> dict[str, Series]:
    """The series of one folder by UID. With `cache` the result is kept there until a file of the
    folder changes.

    Raises PassingError when a file cannot be opened, whatever its name: without it the others might
    look whole.
    """
    folder = Path(folder)
    with passing_errors():
        paths = _dicom_files(folder)
        signature = signature_of(paths)
    kept = _cache_file(cache, "dicom", folder) if cache else None
    found = _cached_series(kept, signature) if kept else None
    if found is None:
        found = judge(read_slices(paths))
        if cache and kept:
            _write_each(cache, folder, found)
            _write_series_cache(kept, signature, found)
    return {series.uid: series for series in found}


def _write_each(cache: Path, folder: Path, found: list[Series]) -> None:
    """What `_series_of` reads; not for a single series, unless there is a file of former ones."""
    for series in found:
        path = _cache_file(cache, "series", folder, series.uid)
        if len(found) > 1 or path.exists():
            _write_series_cache(path, _own_signature(series, folder), [series])


def _series_of(folder: Path | str, uid: str, cache: Path | None) -> Series | None:
    """One of `series_in`. Of a folder of many series, `cache` holds each in a file that is valid as
    long as its own files stay as they are, so that nothing else of the folder is looked at.
    """
    folder = Path(folder)
    if cache and (one := _cached_alone(_cache_file(cache, "series", folder, uid), folder)):
        return one
    return series_in(folder, cache).get(uid)


def _cached_alone(path: Path, folder: Path) -> Series | None:
    """The only series of a cache file; None where it is absent, damaged, or its files changed."""
    try:
        content = read_json(path)
        (series,) = map(_series, content["series"])
        same = content["signature"] == _own_signature(series, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return series if same else None


def _own_signature(series: Series, folder: Path) -> list:
    return [VERSION, *series.signature(folder)]


def _cache_file(cache: Path, *names: Path | str) -> Path:
    return cache / "survey" / f"{fingerprint(list(map(str, names)))}.json"


def _dicom_files(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(filter(looks_like_dicom, visible))


def _write_series_cache(path: Path, signature: list, found: list[Series]) -> None:
    content = {"signature": signature, "series": [asdict(series) for series in found]}
    write_json(path, content)


def _cached_series(path: Path, signature: list) -> list[Series] | None:
    """What `_write_series_cache` wrote; None where that is absent, damaged, or of other files."""
    try:
        content = read_json(path)
        same = content["signature"] == signature
        return list(map(_series, content["series"])) if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _series(content: dict) -> Series:
    """From its fields as JSON has them."""
    fields: dict = {name: _tuples(value) for name, value in content.items()}
    return Series(**fields)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def require_modality(folder: Path | str, uid: str, in_hu: bool, cache: Path | None = None) -> None:
    """UnusableScanError for a series that is not CT where CT is asked for."""
    series = _series_of(folder, uid, cache)
    if series and not series.reason and in_hu and series.modality != "CT":
        raise UnusableScanError(
            f"is {series.modality}, not CT; for images that are not CT: nnssl_pretrain --no-hu"
        )


def check_files(folder: Path | str, uid: str, cache: Path | None = None) -> None:
    """Read every file of a series to its end, so that what fails later is not the disk."""
    series = _series_of(folder, uid, cache)
    if series is None or series.reason:
        return
    with passing_errors():
        for name in dict.fromkeys(series.files):
            _read_to_end(Path(folder, name))


def _read_to_end(path: Path) -> None:
    with path.open("rb") as file:
        for _ in blocks(file):
            pass


def read_series(folder: Path | str, uid: str, cache: Path | None = None) -> Scan:
    """One series on a straight grid, its axes in the patient's order. Raises UnusableScanError or
    PassingError.
    """
    series = _usable(folder, uid, cache)
    try:
        voxels, origin = _voxels(Path(folder), series)
    except RuntimeError as error:
        raise error if isinstance(error, PassingError) else itk_error(error) from error
    if series.positions:
        voxels, origin = _straightened(voxels, series)
    return unify(Scan(voxels, series.spacing, note=series.note), _direction(series), origin)


def _direction(series: Series) -> np.ndarray:
    """The axes' unit vectors, the columns of [3 3]."""
    orientation = np.array(series.orientation)
    return np.column_stack([orientation[:3], orientation[3:], normal_of(orientation)])


def _usable(folder: Path | str, uid: str, cache: Path | None) -> Series:
    """Raises UnusableScanError for a series that is left out, or gone."""
    series = _series_of(folder, uid, cache)
    if series is None:
        raise UnusableScanError(f"the series no longer exists in {folder}")
    if series.reason:
        raise UnusableScanError(series.reason)
    return series


def _straightened(voxels: np.ndarray, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and corner on a straight grid, of slices [Z Y X] that lie on none."""
    fill = AIR if series.modality == "CT" else float(voxels.min())
    depth, height, width = series.spacing
    positions, orientation = np.array(series.positions), np.array(series.orientation)
    return straighten(voxels, positions, orientation, (width, height), depth, fill)


def _voxels(folder: Path, series: Series) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [Z Y X] in the order of the stack, rescaled as its files say; its origin where they
    give one.
    """
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    if series.frames:
        return _of_frames(folder, series), None
    files = [str(folder / name) for name in series.files]
    return _of_files(files) if series.each_by_itself else _of_slices(files)


def _of_slices(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [Z Y X] of files that hold one slice each, and its origin."""
    import SimpleITK

    stack = SimpleITK.ImageSeriesReader()
    stack.SetImageIO("GDCMImageIO")
    stack.SetFileNames(files)
    image = stack.Execute()  # the view below is of its memory
    voxels = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
    return voxels, np.array(image.GetOrigin())


def _of_files(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same, each file by itself: in a stack ITK casts all to the voxel type of the first, in
    which rescaled values of the others may have no place.
    """
    slices = [_of_slices([file]) for file in files]
    return np.concatenate([voxels for voxels, _ in slices]), slices[0][1]


def _of_frames(folder: Path, series: Series) -> np.ndarray:
    """float32 [Z Y X] of files that hold several frames each."""
    frames = {name: _frames_in(folder / name) for name in dict.fromkeys(series.files)}
    pairs = zip(series.files, series.frames, strict=True)
    return np.stack([frames[name][number] for name, number in pairs]).astype(np.float32)


def _frames_in(path: Path) -> np.ndarray:
    """[Z Y X] as they are stored, rescaled."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return SimpleITK.GetArrayFromImage(reader.Execute())
