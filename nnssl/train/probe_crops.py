"""The labelled crops of a probe: which ones are chosen, their voxels and their classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from nnssl.data.crops import read_box, stored_array
from nnssl.data.labelled import NOTE
from nnssl.files import read_json
from nnssl.types import Shape

MOST_SLICES = 24  # of which those of a 2D probe are chosen
NOTHING = -1  # voxels that count neither way


@dataclass(frozen=True)
class Crop:
    """Where one is in its case, and what is in it: `classes` counts its voxels of each class."""

    case: str
    start: Shape
    classes: tuple[int, ...]


class LabelledCrops:
    """Labelled cases, read in crops of one size.

    folder: as `nnssl.data.labelled` leaves it.
    size:   voxels (z, y, x), or (y, x) for axial slices.
    """

    def __init__(self, folder: Path, size: Shape) -> None:
        self.folder, self.size = folder, size
        metadata = read_json(folder / NOTE)
        self.dataset, self.padding = metadata["dataset"], metadata["padding"]
        self.cases = metadata["cases"]
        self.names = ["background", *metadata["labels"]]
        values = (0, *metadata["labels"].values())
        self._class_of_value = {value: number for number, value in enumerate(values)}
        self._ignored = {NOTHING, metadata["ignore"]} - {None}
        self._box = np.array((1,) * (3 - len(size)) + size)

    def image(self, crop: Crop) -> np.ndarray:
        """The voxels [*box], normalised."""
        return self._read(f"{crop.case}.b2nd", crop, self.padding)

    def classes(self, crop: Crop) -> np.ndarray:
        """int64 [*box]: indices in `names`, or NOTHING."""
        return self._classes(self._read(f"{crop.case}_labels.b2nd", crop, NOTHING))

    def _read(self, name: str, crop: Crop, padding: float) -> np.ndarray:
        return read_box(self.folder / name, np.array(crop.start), self._box, padding)

    def _classes(self, values: np.ndarray) -> np.ndarray:
        """A file's values as indices in `names`; those the dataset does not name are background."""
        out = np.zeros(values.shape, np.int64)
        for value, number in self._class_of_value.items():
            out[values == value] = number
        for value in self._ignored:
            out[values == value] = NOTHING
        return out

    def choose(self, case: str, most: int) -> list[Crop]:
        """At most `most` crops of a case, one after the other, each the one with the largest
        fractions of labels not yet covered.
        """
        volume = self._classes(np.asarray(stored_array(self.folder / f"{case}_labels.b2nd")[0]))
        return [self._crop(case, volume, start) for start in self._starts(volume, most)]

    def _crop(self, case: str, volume: np.ndarray, start: Shape) -> Crop:
        return Crop(case, start, tuple(self._count(volume[self._slices(start)]).tolist()))

    def _starts(self, volume: np.ndarray, most: int) -> list[Shape]:
        """The first voxels of the crops that `choose` takes from a volume of classes."""
        totals = self._count(volume[volume > 0]).clip(1)[1:]
        candidates, uncovered = self._candidates(volume), volume.copy()
        chosen: list[Shape] = []
        while candidates and len(chosen) < most:
            gains = [self._gain(uncovered, start, totals) for start in candidates]
            if max(gains) <= 0:
                break
            chosen.append(candidates.pop(int(np.argmax(gains))))
            uncovered[self._slices(chosen[-1])] = 0
        return chosen

    def _candidates(self, volume: np.ndarray) -> list[Shape]:
        """Starts of crops side by side over the labels' bounding box; none without a label."""
        labelled = np.argwhere(volume > 0)
        if not len(labelled):
            return []
        low, high = labelled.min(0), labelled.max(0) + 1
        axes = map(_axis_starts, low, high, self._box, volume.shape)
        return [tuple(map(int, start)) for start in product(*map(np.unique, axes))]

    def _gain(self, uncovered: np.ndarray, start: Shape, totals: np.ndarray) -> float:
        """The sum of the fractions of each label's voxels that a crop would cover."""
        return (self._count(uncovered[self._slices(start)])[1:] / totals).sum()

    def _slices(self, start: Shape) -> tuple[slice, ...]:
        return tuple(slice(max(0, s), s + int(n)) for s, n in zip(start, self._box, strict=True))

    def _count(self, classes: np.ndarray) -> np.ndarray:
        """Voxels of each class."""
        return np.bincount(classes[classes >= 0], minlength=len(self.names))


def _axis_starts(low: int, high: int, box: int, size: int) -> np.ndarray:
    """Along one axis of `size` voxels: where boxes side by side start that cover `low` to `high`;
    of slices at most MOST_SLICES, evenly.
    """
    if size < box:
        return np.full(1, (size - box) // 2)
    count = -(-(high - low) // box) if box > 1 else min(high - low, MOST_SLICES)
    middle = (low + high - box) / 2
    spread = max(0, high - low - box) / 2
    starts = np.linspace(middle - spread, middle + spread, count)
    return starts.round().astype(int).clip(0, size - box)


def voxels_by_class(crops: Iterable[Crop], classes: int) -> np.ndarray:
    """int64 [classes]: voxels of all `crops` together."""
    counts = np.zeros(classes, np.int64)
    for crop in crops:
        counts += crop.classes
    return counts
