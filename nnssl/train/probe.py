"""The probe: how well the labels of a few cases can be predicted on the frozen encoder, by a linear
classifier and by a small decoder.

Half of the cases fit the classifier, in closed form: on voxels in which every class weighs the
same, and then, on other voxels, one threshold a class for the best Dice. They train the decoder as
well (`nnssl.train.few_shot`). The Dice that is reported is that of the other half; the decoder's is
that of all cases, since the halves change places for a second one. Both see a few crops around the
labels. Nothing here draws from a global source of chance and nothing of the encoder is
trained: a run with a probe learns the same, bit for bit, as one without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnssl.data.crops import read_box, stored_array
from nnssl.data.labelled import NOTE
from nnssl.encoder.swin import Swin
from nnssl.files import read_json
from nnssl.train import few_shot, linear
from nnssl.types import Shape

MOST_CROPS = {3: 4, 2: 12}  # of a case, by dimensions
PLACES = 24  # slices of which those of a 2D probe are chosen
POINTS = 3000  # of background for each case, and as many of all labels together
MOST_POINTS = 300  # of one label for each case
PENALTY = 0.03  # of the ridge, for features of variance 1
AT_ONCE = 96**3  # voxels that the encoder takes at once
NOTHING = -1  # voxels that count neither way


@dataclass(frozen=True)
class Crop:
    """Where one is in its case, and what is in it: `classes` counts its voxels of each class."""

    case: str
    start: Shape
    classes: tuple[int, ...]


class Probe:
    """`folder`: as `nnssl.data.labelled` leaves it. `crop`: voxels (z, y, x), or (y, x) for axial
    slices.
    """

    def __init__(self, folder: Path, crop: Shape, every: int) -> None:
        self.folder, self.crop, self.every = Path(folder), tuple(crop), every
        note = read_json(self.folder / NOTE)
        self.dataset, self.padding, self.cases = note["dataset"], note["padding"], note["cases"]
        self._box = np.array((1,) * (3 - len(crop)) + self.crop)
        self._values = {
            0: 0,
            **{value: number for number, value in enumerate(note["labels"].values(), start=1)},
        }
        self.names = ["background", *note["labels"]]
        self._left_out = {NOTHING, note["ignore"]}
        crops = [self._choose(case) for case in self.cases]
        self.fitted_on, self.tested_on = (
            tuple(c for case in crops[half::2] for c in case) for half in (0, 1)
        )
        counts = [
            np.sum(np.array([crop.classes for crop in half]), axis=0)
            for half in (self.fitted_on, self.tested_on)
        ]
        self.scored_classes = [
            k
            for k in range(len(self.names))
            if all(np.ndim(count) and count[k] for count in counts)
        ]
        if not [k for k in self.scored_classes if k]:
            raise ValueError(
                f"the probe on {self.dataset} has no label that is both in the cases it fits, "
                f"{self.cases[::2]}, and in those it tests, {self.cases[1::2]}; use more cases "
                "(--probe-cases)"
            )
        self._points = self._draw_points()

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    @torch.no_grad()
    def ask(self, encoder: Swin, device: torch.device, bf16: bool = False) -> dict[str, float]:
        """{"probe_<label>": Dice of the tested half, ..., "probe_dice": their mean,
        "probe_decoder": the decoder's mean}; `encoder` in evaluation mode.
        """
        kept: tuple[list, list] = ([], [])  # maps of the crops of either half
        fitted = self._fit(encoder, device, bf16, kept[0])
        linearly = self._nothing()
        for crops, maps in self._maps(encoder, self.tested_on, device, bf16):
            kept[1].extend(_kept(maps))
            scores = linear.everywhere(maps, encoder.strides, fitted, self.crop)
            linearly += self._confusion(crops, scores)
        told = self._dice(linearly)
        decoded = self._dice(self._decode(kept, encoder.strides[0], device))
        labels = {f"probe_{name}": value for name, value in told.items()}
        return {
            **labels,
            "probe_dice": sum(told.values()) / len(told),
            "probe_decoder": sum(decoded.values()) / len(decoded),
        }

    def _nothing(self) -> Tensor:
        return torch.zeros(*[len(self.scored_classes)] * 2, dtype=torch.long)

    def _confusion(self, crops: Sequence[Crop], scores: Tensor) -> Tensor:
        """Voxels by right and by predicted class; scores [B classes *crop]."""
        right = torch.stack([self._target(crop) for crop in crops])
        counted, classes = right >= 0, len(self.scored_classes)
        pairs = right[counted] * classes + scores.argmax(dim=1).cpu()[counted]
        return pairs.bincount(minlength=classes**2).view(classes, classes)

    def _dice(self, confusion: Tensor) -> dict[str, float]:
        """By label, without background."""
        hit = confusion.diagonal().double()
        dice = (2 * hit / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)).tolist()
        return {
            self.names[k]: value for k, value in zip(self.scored_classes, dice, strict=True) if k
        }

    def _decode(self, kept: Sequence[list], stride: int, device: torch.device) -> Tensor:
        """The confusion of small decoders of all cases, of which one half trains and the other is
        tested, and the other way round.
        """
        halves, confusion = (self.fitted_on, self.tested_on), self._nothing()
        for fitted, tested in ((0, 1), (1, 0)):
            labels = [self._target(crop) for crop in halves[fitted]]
            many = len(self.scored_classes)
            decoders = [
                few_shot.fit(kept[fitted], labels, stride, many, device, few_shot.STEPS, seed)
                for seed in few_shot.SEEDS
            ]
            for crop, maps in zip(halves[tested], kept[tested], strict=True):
                one = [tokens[None].to(device).float() for tokens in maps]
                found = (decoder.everywhere(one, stride, self.crop) for decoder in decoders)
                scores = reduce(add, found)
                confusion += self._confusion([crop], scores)
        return confusion

    def _fit(
        self, encoder: Swin, device: torch.device, bf16: bool, kept: list
    ) -> tuple[Tensor, Tensor]:
        """Coefficients and offset; every other point is for the thresholds. Adds to `kept`."""
        features, classes = [], []
        for crops, maps in self._maps(encoder, self.fitted_on, device, bf16):
            kept.extend(_kept(maps))
            for number, crop in enumerate(crops):
                points, numbers = self._points[crop]
                one = [tokens[number : number + 1] for tokens in maps]
                features.append(linear.at_points(one, encoder.strides, points).cpu())
                classes.append(numbers)
        features, classes = torch.cat(features), torch.cat(classes)
        alike = 1 / classes.bincount(minlength=len(self.scored_classes)).clamp(min=1).double()
        half, rest = slice(0, None, 2), slice(1, None, 2)
        targets = torch.nn.functional.one_hot(classes[half], len(self.scored_classes))
        coefficients, offset = linear.ridge(features[half], targets, alike[classes[half]], PENALTY)
        scores = features[rest].double() @ coefficients + offset
        voxels = (
            torch.tensor(
                [sum(crop.classes[k] for crop in self.fitted_on) for k in self.scored_classes]
            )
            * alike
        )
        return coefficients, offset + linear.offsets(scores, classes[rest], voxels[classes[rest]])

    def _target(self, crop: Crop) -> Tensor:
        """As `_labels`, int64 [*crop]."""
        return torch.from_numpy(self._labels(crop)).view(self.crop)

    def _maps(
        self, encoder: Swin, crops: Sequence[Crop], device: torch.device, bf16: bool
    ) -> Iterator[tuple]:
        """The crops, a few at a time, and the encoder's maps of them in fp32."""
        many = max(1, AT_ONCE // int(np.prod(self.crop)))
        for first in range(0, len(crops), many):
            some = crops[first : first + many]
            images = torch.from_numpy(
                np.stack([self._read(crop, "", self.padding) for crop in some]).astype(np.float32)
            )
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                maps = encoder(images.view(len(some), 1, *self.crop).to(device))
            yield some, [tokens.float() for tokens in maps]

    # -- what is looked at -------------------------------------------------------------------------

    def _read(self, crop: Crop, part: str, padding: float) -> np.ndarray:
        return read_box(
            self.folder / f"{crop.case}{part}.b2nd", np.array(crop.start), self._box, padding
        )

    def _labels(self, crop: Crop) -> np.ndarray:
        """int64 [*box]: places in `scored_classes`, or NOTHING."""
        values = self._read(crop, "_labels", NOTHING)
        out = np.full(values.shape, NOTHING, np.int64)
        for place, number in enumerate(self.scored_classes):
            out[self._classes(values) == number] = place
        return out

    def _classes(self, values: np.ndarray) -> np.ndarray:
        """A file's values as places in `names`; those the dataset does not name are background."""
        out = np.zeros(values.shape, np.int64)
        for value, number in self._values.items():
            out[values == value] = number
        for value in self._left_out - {None}:
            out[values == value] = NOTHING
        return out

    def _choose(self, case: str) -> list[Crop]:
        """At most MOST_CROPS, one after the other, each that with the largest fractions of labels
        not yet covered.
        """
        stored = stored_array(self.folder / f"{case}_labels.b2nd")
        volume = self._classes(np.asarray(stored[0]))
        labelled = np.argwhere(volume > 0)
        if not len(labelled):
            return []
        uncovered = volume.copy()
        totals = np.bincount(volume[volume > 0], minlength=len(self.names)).clip(1)
        chosen: list[Crop] = []
        candidates = self._candidates(labelled.min(0), labelled.max(0) + 1, np.array(volume.shape))
        while candidates and len(chosen) < MOST_CROPS[len(self.crop)]:
            gains = [(self._count(uncovered, start)[1:] / totals[1:]).sum() for start in candidates]
            if max(gains) <= 0:
                break
            start = candidates.pop(int(np.argmax(gains)))
            chosen.append(Crop(case, start, tuple(self._count(volume, start).tolist())))
            uncovered[self._slices(start)] = 0
        return chosen

    def _candidates(self, low: np.ndarray, high: np.ndarray, size: np.ndarray) -> list[Shape]:
        """Crops side by side over the labels' bounding box; of slices at most PLACES, evenly."""
        axes = []
        for a, b, box, whole in zip(low, high, self._box, size, strict=True):
            count = -(-(b - a) // box) if box > 1 else min(b - a, PLACES)
            middle = (a + b - box) / 2
            spread = max(0, b - a - box) / 2
            starts = np.linspace(middle - spread, middle + spread, count).round().astype(int)
            axes.append(
                starts.clip(0, whole - box) if whole >= box else np.full(1, (whole - box) // 2)
            )
        return [tuple(map(int, start)) for start in product(*map(np.unique, axes))]

    def _slices(self, start: Shape) -> tuple[slice, ...]:
        return tuple(slice(max(0, s), s + int(n)) for s, n in zip(start, self._box, strict=True))

    def _count(self, volume: np.ndarray, start: Shape) -> np.ndarray:
        inside = volume[self._slices(start)]
        return np.bincount(inside[inside >= 0], minlength=len(self.names))

    def _draw_points(self) -> dict[Crop, tuple[Tensor, Tensor]]:
        """For each crop that is fitted: voxels [n dims] and their classes [n], evenly over the
        case's crops.
        """
        label = min(MOST_POINTS, -(-POINTS // (len(self.scored_classes) - 1)))
        points = {}
        for crop in self.fitted_on:
            labels = self._labels(crop)
            generator = np.random.default_rng(
                (self.cases.index(crop.case), *(abs(s) for s in crop.start))
            )
            fraction = sum(1 for other in self.fitted_on if other.case == crop.case)
            drawn = [
                generator.permutation(np.argwhere(labels == place))[
                    : -(-(label if place else POINTS) // fraction)
                ]
                for place in range(len(self.scored_classes))
            ]
            places = np.concatenate(drawn)[:, 3 - len(self.crop) :]
            classes = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn])
            points[crop] = torch.from_numpy(places), torch.from_numpy(classes)
        return points


def _kept(maps: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Of each image its maps [C *grid], on the CPU in half the memory."""
    for number in range(len(maps[0])):
        yield [tokens[number].half().cpu() for tokens in maps]
