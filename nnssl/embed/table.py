"""The features stored for each scan, and the tables of all scans. Nothing is pickled.

scans/<case>.npz     one scan: written whole, and so the mark that it is done
features.npz, .csv   one row per scan: id, path, group, shape, spacing, windows, stage0 to stage4
labels.npz, .csv     one row per scan and label, where there are masks
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.data.survey_report import NAMES
from nnssl.embed.npz import write_npz
from nnssl.embed.pooling import BODY, Pooled
from nnssl.embed.scan import resampled_nearest
from nnssl.hu import HUPolicy
from nnssl.types import Shape

STAGES = tuple(f"stage{number}" for number in range(5))
SCANS, FEATURES, LABELS = "scans", "features", "labels"
SHOWN_HU = (-160.0, 240.0)  # black and white of a thumbnail
THUMBNAIL = 72  # pixels an edge at most

Arrays = dict[str, np.ndarray]  # of one scan, by name, as `keep` writes them


@dataclass(frozen=True)
class ScanRow:
    """Who a scan is. id: its path below the folder that was given, without ending; unique.

    group: the first folder below the one that was given, for pictures and as a first label to try.
    case:  its name in file names.
    """

    id: str
    path: str
    group: str
    case: str


@dataclass(frozen=True)
class FeatureTable:
    """Rows of `features.npz`: texts [n], stages five arrays [n C], thumbnails uint8 or empty."""

    id: list[str]
    group: list[str]
    stages: list[np.ndarray]
    thumbnails: list[np.ndarray]


def row_path(folder: Path, row: ScanRow) -> Path:
    return files.inside(folder / SCANS, f"{row.case}.npz")


def keep(
    folder: Path, row: ScanRow, signature: str, pooled: Pooled, about: dict, small: np.ndarray
) -> None:
    """Write one scan. about: `shape` and `spacing` as they were in the file."""
    own = {name: np.array(about[name]) for name in ("shape", "spacing")}
    mark = {"signature": np.array(signature)}
    write_npz(row_path(folder, row), {**mark, **own, **_arrays(pooled), "thumbnail": small})


def _arrays(pooled: Pooled) -> dict[str, np.ndarray]:
    return {
        "windows": np.array(pooled.windows),
        "labels": np.array(pooled.labels, int),
        "voxels": np.array(pooled.voxels, int),
        **_by_stage(pooled.means),
    }


def kept(folder: Path, row: ScanRow) -> Arrays | None:
    """What `keep` wrote; None where it is absent or incomplete."""
    try:
        with row_path(folder, row).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile.BadZipFile, zlib.error
        if isinstance(error, MemoryError):
            raise
        return None


def is_done(folder: Path, row: ScanRow, signature: str) -> bool:
    there = kept(folder, row)
    return there is not None and str(there.get("signature")) == signature


def write_finished_scans(folder: Path, rows: Sequence[ScanRow], has_labels: bool) -> FeatureTable:
    """The tables of the scans that are done, in the order of `rows`."""
    done = [(row, one) for row in rows if (one := kept(folder, row)) is not None]
    features = _feature_table([row for row, _ in done], [one for _, one in done])
    _write_features(folder, done, features.stages)
    if has_labels:
        _write_labels(folder, done)
    return features


def _feature_table(rows: list[ScanRow], arrays: list[Arrays]) -> FeatureTable:
    ids, groups = [row.id for row in rows], [row.group for row in rows]
    stages = [_stack([one[stage][BODY] for one in arrays]) for stage in STAGES]
    return FeatureTable(ids, groups, stages, [one["thumbnail"] for one in arrays])


def _write_features(
    folder: Path, done: list[tuple[ScanRow, Arrays]], stages: list[np.ndarray]
) -> None:
    texts = {name: [getattr(row, name) for row, _ in done] for name in ("id", "path", "group")}
    more = {name: [one[name] for _, one in done] for name in ("shape", "spacing", "windows")}
    _write_npz(folder / f"{FEATURES}.npz", texts, {**more, **_by_stage(stages)})
    joined = {name: _joined(values) for name, values in more.items()}
    _write_csv(folder / f"{FEATURES}.csv", {**texts, **joined}, stages)


def _write_labels(folder: Path, done: list[tuple[ScanRow, Arrays]]) -> None:
    arrays = [one for _, one in done]
    ids = [row.id for row, one in done for _ in one["labels"]]
    named = {"label": _whole(arrays, "labels"), "voxels": _whole(arrays, "voxels")}
    stages = [_means_of_labels(arrays, stage) for stage in STAGES]
    _write_npz(folder / f"{LABELS}.npz", {"id": ids}, {**named, **_by_stage(stages)})
    _write_csv(folder / f"{LABELS}.csv", {"id": ids, **named}, stages)


def _means_of_labels(arrays: list[Arrays], stage: str) -> np.ndarray:
    """[labels of all scans, C]: the rows after the body's."""
    return _stack([mean for one in arrays for mean in one[stage][BODY + 1 :]])


def _whole(arrays: list[Arrays], name: str) -> list[int]:
    return [int(n) for one in arrays for n in one[name]]


def _stack(vectors: list[np.ndarray]) -> np.ndarray:
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def _by_stage(stages: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(STAGES, stages, strict=True))


def _joined(values: Iterable) -> list[str]:
    return ["x".join(f"{n:g}" for n in np.atleast_1d(value)) for value in values]


def _write_npz(path: Path, texts: dict[str, list[str]], numbers: dict) -> None:
    """Texts as arrays of text, so that they are read without pickle."""
    arrays = {name: np.array([_text(v) for v in values], str) for name, values in texts.items()}
    write_npz(path, arrays | {name: np.array(values) for name, values in numbers.items()})


def _text(name: str) -> str:
    """Names of files need not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write_csv(path: Path, columns: dict[str, list], stages: list[np.ndarray]) -> None:
    with files.atomic(path) as temporary, temporary.open("w", newline="", **NAMES) as file:
        table = csv.writer(file)
        table.writerow([*columns, *_channel_names(stages)])
        for number, cells in enumerate(zip(*columns.values(), strict=True)):
            table.writerow([*cells, *_digits(stages, number)])


def _channel_names(stages: list[np.ndarray]) -> list[str]:
    return [
        f"{stage}_{channel}"
        for stage, values in zip(STAGES, stages, strict=True)
        for channel in range(values.shape[1])
    ]


def _digits(stages: list[np.ndarray], row: int) -> list[str]:
    return [f"{float(value):.6g}" for values in stages for value in values[row]]


def thumbnail(
    image: np.ndarray, hu: HUPolicy | None, spacing: Sequence[float], affine: np.ndarray | None
) -> np.ndarray:
    """uint8 [h w]: the middle coronal slice, head up, of square pixels; SHOWN_HU is black to white.

    image: network input [Z Y X]; without `hu` its middle 98 % are shown.
    """
    plane = image[:, image.shape[1] // 2]
    size = _thumbnail_size(plane.shape, (spacing[0], spacing[2]))
    small = _grey(resampled_nearest(plane, size), *_grey_ends(image, hu))
    upwards = affine is None or affine[2, 2] >= 0
    return small[::-1] if upwards else small


def _grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8, from `low`, which is black, to `high`, which is white."""
    return (((plane - low) / max(high - low, 1e-6)).clip(0, 1) * 255).astype(np.uint8)


def _grey_ends(image: np.ndarray, hu: HUPolicy | None) -> tuple[float, float]:
    """The network input that is black, and that which is white."""
    if hu is None:
        low, high = np.percentile(image, (1, 99))
    else:
        low, high = (hu.normalise(np.float32(end)) for end in SHOWN_HU)
    return float(low), float(high)


def _thumbnail_size(shape: Shape, spacing: Sequence[float]) -> Shape:
    """Pixels of a plane in square ones; the longer edge has THUMBNAIL."""
    edges = [n * mm for n, mm in zip(shape, spacing, strict=True)]
    scale = THUMBNAIL / max(edges)
    return tuple(max(1, round(edge * scale)) for edge in edges)
