"""The probe: how well the labels of a few cases can be predicted on the frozen encoder, by a linear
classifier and by a small decoder.

Half of the cases fit the classifier, in closed form: on voxels in which every class weighs the
same, and then, on other voxels, one threshold per class for the best Dice. They train the decoder
as well (`nnssl.train.few_shot`). The Dice that is reported is that of the other half; the
decoder's is that of all cases, since the halves change roles for a second one. Both see a few crops
around the labels. No global random generator is used and the encoder is not trained: a run with a
probe learns the same, bit for bit, as one without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.train import few_shot, linear
from nnssl.train.probe_crops import NOTHING, Crop, LabelledCrops, voxels_by_class
from nnssl.types import Shape

MOST_CROPS = {3: 4, 2: 12}  # of a case, by dimensions
POINTS = 3000  # of background for each case, and as many of all labels together
MOST_POINTS = 300  # of one label for each case
PENALTY = 0.03  # of the ridge, for features of variance 1
AT_ONCE = 96**3  # voxels that the encoder takes at once
# every other one: cases to fit and to test, points for coefficients and for thresholds
HALF, REST = slice(0, None, 2), slice(1, None, 2)

Maps = list[Tensor]  # of one image or of several, of every stage, finest first


@dataclass(frozen=True)
class _Encoding:
    """A frozen encoder and how its maps are computed."""

    encoder: Swin
    device: torch.device
    bf16: bool

    def maps(self, images: Tensor) -> Maps:
        """[B 1 *crop] -> [B C *grid] of every stage in fp32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            maps = self.encoder(images.to(self.device))
        return [tokens.float() for tokens in maps]


class Probe:
    """`folder`: as `nnssl.data.labelled` leaves it. `crop`: voxels (z, y, x), or (y, x) for axial
    slices.
    """

    def __init__(self, folder: Path, crop: Shape, every: int) -> None:
        self.crop, self.every = tuple(crop), every
        self._crops = LabelledCrops(Path(folder), self.crop)
        self.dataset, self.cases = self._crops.dataset, self._crops.cases
        self.names = self._crops.names
        self.fitted_on, self.tested_on = self._choose(HALF), self._choose(REST)
        self.scored_classes = self._scored_classes()
        self._points = {crop: self._draw_points(crop) for crop in self.fitted_on}

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    @torch.no_grad()
    def evaluate(self, encoder: Swin, device: torch.device, bf16: bool = False) -> dict[str, float]:
        """{"probe_<label>": Dice of the tested half, ..., "probe_dice": their mean,
        "probe_decoder": the decoder's mean}; `encoder` in evaluation mode.
        """
        encoding = _Encoding(encoder, device, bf16)
        kept: tuple[list[Maps], list[Maps]] = ([], [])  # maps of the crops of either half
        classifier = self._fit(encoding, kept[0])
        linearly = self._dice(self._test(encoding, classifier, kept[1]))
        decoded = self._dice(self._decode(kept, encoder.strides[0], device))
        return {
            **{f"probe_{name}": dice for name, dice in linearly.items()},
            "probe_dice": sum(linearly.values()) / len(linearly),
            "probe_decoder": sum(decoded.values()) / len(decoded),
        }

    # -- the linear classifier

    def _fit(self, encoding: _Encoding, kept: list[Maps]) -> tuple[Tensor, Tensor]:
        """Coefficients and offset; every other point is for the thresholds. Adds to `kept`."""
        features, classes = self._features(encoding, kept)
        count = len(self.scored_classes)
        equal = 1 / classes.bincount(minlength=count).clamp(min=1).double()  # weights of classes
        targets = F.one_hot(classes[HALF], count)
        coefficients, offset = linear.ridge(features[HALF], targets, equal[classes[HALF]], PENALTY)
        scores = features[REST].double() @ coefficients + offset
        weights = self._voxels() * equal
        thresholds = linear.offsets(scores, classes[REST], weights[classes[REST]])
        return coefficients, offset + thresholds

    def _voxels(self) -> Tensor:
        """How many voxels each scored class has in the fitted crops."""
        voxels = voxels_by_class(self.fitted_on, len(self.names))
        return torch.from_numpy(voxels[self.scored_classes])

    def _features(self, encoding: _Encoding, kept: list[Maps]) -> tuple[Tensor, Tensor]:
        """At the points of the fitted crops: features [n d] and classes [n]. Adds to `kept`."""
        features, classes = [], []
        for crops, maps in self._encoded(encoding, self.fitted_on):
            kept.extend(_maps_on_cpu(maps))
            for crop, own in zip(crops, _each(maps), strict=True):
                points, of_points = self._points[crop]
                features.append(linear.at_points(own, encoding.encoder.strides, points).cpu())
                classes.append(of_points)
        return torch.cat(features), torch.cat(classes)

    def _test(
        self, encoding: _Encoding, classifier: tuple[Tensor, Tensor], kept: list[Maps]
    ) -> Tensor:
        """The confusion on the tested crops. Adds to `kept`."""
        confusion = self._no_confusion()
        for crops, maps in self._encoded(encoding, self.tested_on):
            kept.extend(_maps_on_cpu(maps))
            scores = linear.everywhere(maps, encoding.encoder.strides, classifier, self.crop)
            confusion += self._confusion(crops, scores)
        return confusion

    def _encoded(
        self, encoding: _Encoding, crops: Sequence[Crop]
    ) -> Iterator[tuple[Sequence[Crop], Maps]]:
        """The crops, a few at a time, and their maps."""
        count = max(1, AT_ONCE // int(np.prod(self.crop)))
        for first in range(0, len(crops), count):
            batch = crops[first : first + count]
            yield batch, encoding.maps(self._images(batch))

    def _images(self, crops: Sequence[Crop]) -> Tensor:
        """[B 1 *crop]"""
        images = np.stack([self._crops.image(crop) for crop in crops]).astype(np.float32)
        return torch.from_numpy(images).view(len(crops), 1, *self.crop)

    # -- the small decoder

    def _decode(self, kept: Sequence[list[Maps]], stride: int, device: torch.device) -> Tensor:
        """The confusion of small decoders of all cases, of which one half trains and the other is
        tested, and the other way round.
        """
        halves, confusion = (self.fitted_on, self.tested_on), self._no_confusion()
        for fitted, tested in ((0, 1), (1, 0)):
            decoders = self._decoders(halves[fitted], kept[fitted], stride, device)
            for crop, maps in zip(halves[tested], kept[tested], strict=True):
                own = [tokens[None].to(device).float() for tokens in maps]
                confusion += self._confusion([crop], self._decoded(decoders, own, stride))
        return confusion

    def _decoded(self, decoders: Sequence[few_shot.Decoder], maps: Maps, stride: int) -> Tensor:
        """The sum of the decoders' probabilities at every voxel [1 classes *crop]."""
        return reduce(add, (decoder.everywhere(maps, stride, self.crop) for decoder in decoders))

    def _decoders(
        self, crops: Sequence[Crop], maps: list[Maps], stride: int, device: torch.device
    ) -> list[few_shot.Decoder]:
        labels, classes = [self._target(crop) for crop in crops], len(self.scored_classes)
        return [
            few_shot.fit(maps, labels, stride, classes, device, few_shot.STEPS, seed)
            for seed in few_shot.SEEDS
        ]

    # -- scores

    def _no_confusion(self) -> Tensor:
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

    # -- crops, their classes and points

    def _choose(self, half: slice) -> tuple[Crop, ...]:
        """The crops of every other case."""
        most = MOST_CROPS[len(self.crop)]
        return tuple(crop for case in self.cases[half] for crop in self._crops.choose(case, most))

    def _scored_classes(self) -> list[int]:
        """The classes that are in both halves; ValueError where no label is."""
        fitted, tested = (
            voxels_by_class(crops, len(self.names)) for crops in (self.fitted_on, self.tested_on)
        )
        scored = [k for k in range(len(self.names)) if fitted[k] and tested[k]]
        if not any(scored):
            raise ValueError(
                f"the probe on {self.dataset} has no label that occurs both in the cases it is "
                f"fitted on, {self.cases[HALF]}, and in those it is tested on, "
                f"{self.cases[REST]}; use more cases (--probe-cases)"
            )
        return scored

    def _target(self, crop: Crop) -> Tensor:
        """As `_labels`, int64 [*crop]."""
        return torch.from_numpy(self._labels(crop)).view(self.crop)

    def _labels(self, crop: Crop) -> np.ndarray:
        """int64 [*box]: indices in `scored_classes`, or NOTHING."""
        classes = self._crops.classes(crop)
        out = np.full(classes.shape, NOTHING, np.int64)
        for index, number in enumerate(self.scored_classes):
            out[classes == number] = index
        return out

    def _draw_points(self, crop: Crop) -> tuple[Tensor, Tensor]:
        """Voxels [n dims] of a crop and their classes [n]; a case's are drawn evenly from its
        crops.
        """
        labels, count = self._labels(crop), len(self.scored_classes)
        crops = sum(other.case == crop.case for other in self.fitted_on)
        of_label = min(MOST_POINTS, -(-POINTS // (count - 1)))
        seed = (self.cases.index(crop.case), *map(abs, crop.start))
        generator = np.random.default_rng(seed)
        drawn = []
        for index in range(count):
            voxels = generator.permutation(np.argwhere(labels == index))
            drawn.append(voxels[: -(-(of_label if index else POINTS) // crops)])
        points = np.concatenate(drawn)[:, 3 - len(self.crop) :]
        classes = np.repeat(np.arange(count), [len(voxels) for voxels in drawn])
        return torch.from_numpy(points), torch.from_numpy(classes)


def _each(maps: Maps) -> Iterator[Maps]:
    """The maps [1 C *grid] of each image."""
    for number in range(len(maps[0])):
        yield [tokens[number : number + 1] for tokens in maps]


def _maps_on_cpu(maps: Maps) -> Iterator[Maps]:
    """The maps [C *grid] of each image, on the CPU in half the memory."""
    for number in range(len(maps[0])):
        yield [tokens[number].half().cpu() for tokens in maps]
