"""What is kept of each scan, and the tables of all of them. Nothing is pickled.

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
from nnssl.embed.pooling import BODY, Pooled
from nnssl.types import HUPolicy, Shape

STAGES = 5
SCANS, FEATURES, LABELS = "scans", "features", "labels"
SHOWN_HU = (-160.0, 240.0)  # black and white of a thumbnail
THUMBNAIL = 72  # pixels an edge at most


@dataclass(frozen=True)
class Row:
    """Who a scan is. id: its path below the folder that was given, without ending; unique.

    group: the folder that it lies in, for pictures and as a first label to try.
    case:  its name in file names.
    """

    id: str
    path: str
    group: str
    case: str


@dataclass(frozen=True)
class Table:
    """Rows of `features.npz`: texts [n], stages five arrays [n C], thumbnails uint8 or empty."""

    id: list[str]
    group: list[str]
    stages: list[np.ndarray]
    thumbnails: list[np.ndarray]


def place(folder: Path, row: Row) -> Path:
    return files.inside(folder / SCANS, f"{row.case}.npz")


def keep(
    folder: Path, row: Row, signature: str, pooled: Pooled, about: dict, small: np.ndarray
) -> None:
    """Write one scan. about: `shape` and `spacing` as they were in the file."""
    stages = {f"stage{number}": means for number, means in enumerate(pooled.means)}
    with files.atomic(place(folder, row)) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            signature=np.array(signature),
            shape=np.array(about["shape"]),
            spacing=np.array(about["spacing"]),
            windows=np.array(pooled.windows),
            labels=np.array(pooled.labels, int),
            voxels=np.array(pooled.voxels, int),
            thumbnail=small,
            **stages,  # pyright: ignore[reportArgumentType] names of arrays, none of options
        )


def kept(folder: Path, row: Row) -> dict[str, np.ndarray] | None:
    """What `keep` wrote; None where it is not there, or not whole."""
    try:
        with place(folder, row).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile.BadZipFile, zlib.error
        if isinstance(error, MemoryError):
            raise
        return None


def is_done(folder: Path, row: Row, signature: str) -> bool:
    there = kept(folder, row)
    return there is not None and str(there.get("signature")) == signature


def write(folder: Path, rows: Sequence[Row], has_labels: bool) -> Table:
    """The tables of the scans that are done, in the order of `rows`."""
    done = [(row, one) for row in rows if (one := kept(folder, row)) is not None]
    who = [row for row, _ in done]
    stages = [_stack([one[f"stage{n}"][BODY] for _, one in done]) for n in range(STAGES)]
    texts = {name: [getattr(row, name) for row in who] for name in ("id", "path", "group")}
    more = {name: [one[name] for _, one in done] for name in ("shape", "spacing", "windows")}
    _write_npz(folder / f"{FEATURES}.npz", texts, {**more, **_by_stage(stages)})
    columns = {**texts, **{name: _joined(values) for name, values in more.items()}}
    _write_csv(folder / f"{FEATURES}.csv", columns, stages)
    if has_labels:
        _write_labels(folder, done)
    return Table(texts["id"], texts["group"], stages, [one["thumbnail"] for _, one in done])


def _write_labels(folder: Path, done: list[tuple[Row, dict]]) -> None:
    ids = [row.id for row, one in done for _ in one["labels"]]
    more = {name: [int(n) for _, one in done for n in one[name]] for name in ("labels", "voxels")}
    stages = [
        _stack([mean for _, one in done for mean in one[f"stage{n}"][BODY + 1 :]])
        for n in range(STAGES)
    ]
    named = {"label": more["labels"], "voxels": more["voxels"]}
    _write_npz(folder / f"{LABELS}.npz", {"id": ids}, {**named, **_by_stage(stages)})
    _write_csv(folder / f"{LABELS}.csv", {"id": ids, **named}, stages)


def _stack(vectors: list[np.ndarray]) -> np.ndarray:
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def _by_stage(stages: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"stage{number}": values for number, values in enumerate(stages)}


def _joined(values: Iterable) -> list[str]:
    return ["x".join(f"{n:g}" for n in np.atleast_1d(value)) for value in values]


def _write_npz(path: Path, texts: dict[str, list[str]], numbers: dict) -> None:
    """Texts as arrays of text, so that they are read without pickle."""
    arrays = {name: np.array([_text(v) for v in values], str) for name, values in texts.items()}
    arrays |= {name: np.array(values) for name, values in numbers.items()}
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] as above


def _text(name: str) -> str:
    """Names of files need not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write_csv(path: Path, columns: dict[str, list], stages: list[np.ndarray]) -> None:
    names = [f"stage{n}_{c}" for n, values in enumerate(stages) for c in range(values.shape[1])]
    with files.atomic(path) as temporary, temporary.open("w", newline="", **NAMES) as file:
        table = csv.writer(file)
        table.writerow([*columns, *names])
        for number, cells in enumerate(zip(*columns.values(), strict=True)):
            vectors = (f"{float(v):.6g}" for values in stages for v in values[number])
            table.writerow([*cells, *vectors])


def thumbnail(
    image: np.ndarray, hu: HUPolicy | None, spacing: Sequence[float], affine: np.ndarray | None
) -> np.ndarray:
    """uint8 [h w]: the middle coronal slice, head up, of square pixels; SHOWN_HU is black to white.

    image: network input [Z Y X]; without `hu` its middle 98 % are shown.
    """
    plane = image[:, image.shape[1] // 2]
    low, high = (
        [float(hu.normalise(np.float32(end))) for end in SHOWN_HU]
        if hu is not None
        else np.percentile(image, (1, 99))
    )
    grey = ((plane - low) / max(high - low, 1e-6)).clip(0, 1)
    height, width = plane.shape[0] * spacing[0], plane.shape[1] * spacing[2]
    scale = THUMBNAIL / max(height, width)
    size: Shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    where = [
        np.minimum((np.arange(n) + 0.5) * old / n, old - 1).astype(int)
        for n, old in zip(size, plane.shape, strict=True)
    ]
    small = (grey[np.ix_(*where)] * 255).astype(np.uint8)
    upwards = affine is None or affine[2, 2] >= 0
    return small[::-1] if upwards else small
