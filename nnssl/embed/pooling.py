"""The encoder's maps of whole scans: means over regions, and one map in full.

A scan is encoded as a whole up to WHOLE, and in windows that overlap by half beyond: a rule of scan
and encoder alone, so that the same scan has the same features on every machine. Windows begin at
multiples of the last stride, so that the tokens of all of them lie on one grid; where windows
overlap, a token counts more the farther it is from its window's edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.embed.scan import Prepared
from nnssl.shapes import ceil_div, floor_div, round_up
from nnssl.types import Shape

if TYPE_CHECKING:
    from nnssl.embed.scan_encoder import Encoder

WHOLE = 160**3 * 48  # voxels times channels of the first map; some 2 GB of activations
WINDOW = 96  # voxels per edge at least
SLICES = 16  # of a 2D encoder at once
BODY = 0  # the region that every scan has


Window = Literal["whole"] | Shape | None  # voxels (z, y, x); None: by the rule of `window_for`


@dataclass(frozen=True)
class Pooled:
    """means: five arrays [1 + labels, channels]; the first row is the body's.

    labels, voxels: of the further rows, the label and its voxels on the grid.
    dense:          [C *grid] of the map that was asked for, float32; windows: how many.
    """

    means: tuple[np.ndarray, ...]
    labels: tuple[int, ...]
    voxels: tuple[int, ...]
    dense: np.ndarray | None
    windows: int


def window_for(encoder: Encoder, shape: Shape, window: Window = None) -> Shape:
    """Voxels (z, y, x) of a window, multiples of the last stride; the scan's own: as a whole.

    window: "whole", three numbers, or None: as a whole up to WHOLE.
    """
    if window == "whole" or (window is None and _can_encode_whole(encoder, shape)):
        size = shape
    elif window is None:
        size = _usual_window(encoder.crop)
    else:
        size = tuple(window)
    return round_up(size, encoder.strides[-1])


def _usual_window(crop: Shape) -> Shape:
    """The crop of the pretraining, at least WINDOW; of a 2D crop as many slices as rows."""
    in_3d = (crop[0],) * (3 - len(crop)) + tuple(crop)
    return tuple(max(n, WINDOW) for n in in_3d)


def _can_encode_whole(encoder: Encoder, shape: Shape) -> bool:
    return bool(np.prod(shape) * encoder.channels[0] <= WHOLE)


@torch.inference_mode()
def pool(
    encoder: Encoder,
    prepared: Prepared,
    dense: int | None = None,
    window: Window = None,
) -> Pooled:
    """Features of one scan; `dense`: the number of the map that is wanted in full."""
    image = torch.from_numpy(prepared.image)
    labels = _labels_present(prepared.labels)
    counts = _voxel_counts(_regions(prepared, labels), encoder.strides)
    sums = Sums.of(encoder, counts, dense)
    windows = Windows.of(encoder, tuple(image.shape), window)
    for start in windows.starts:
        for number, tokens in enumerate(_maps(encoder, image[windows.voxels(start)])):
            at = windows.tokens(start, number, tokens.shape[1:])
            sums.add(number, at, windows.weighted(tokens, start, number))
    return sums.pooled(labels, len(windows.starts))


@dataclass(frozen=True)
class Sums:
    """Sums over the windows so far.

    counts: for each map, voxels of each region in each token [regions *grid]; sums: float64
    [regions C]; whole: [C *grid] of the map `dense`, None if no full map is requested.
    """

    counts: list[Tensor]
    sums: list[Tensor]
    dense: int | None
    whole: Tensor | None

    @classmethod
    def of(cls, encoder: Encoder, counts: list[Tensor], dense: int | None) -> Sums:
        regions = len(counts[0])
        sums = [torch.zeros(regions, c, dtype=torch.float64) for c in encoder.channels]
        whole = None if dense is None else _empty_map(encoder.channels[dense], counts[dense])
        return cls(counts, sums, dense, whole)

    def add(self, number: int, at: tuple[slice, ...], tokens: Tensor) -> None:
        """A window's weighted tokens of a map; `at`: where they lie in it."""
        self.sums[number] += _by_region(tokens, self.counts[number][at])
        if self.whole is not None and number == self.dense:
            self.whole[at] += tokens.cpu()

    def means(self) -> tuple[np.ndarray, ...]:
        return tuple(_mean(*one) for one in zip(self.sums, self.counts, strict=True))

    def pooled(self, labels: tuple[int, ...], windows: int) -> Pooled:
        whole = None if self.whole is None else self.whole.numpy()
        return Pooled(self.means(), labels, _voxels(self.counts[0][1:]), whole, windows)


def _empty_map(channels: int, counts: Tensor) -> Tensor:
    """Zeros [C *grid] on the grid of `counts` [regions *grid]."""
    return torch.zeros(channels, *counts.shape[1:])


def _by_region(tokens: Tensor, counts: Tensor) -> Tensor:
    """Tokens [C *grid] summed by region, each as often as it has voxels there: float64 [regions C].

    counts: [regions *grid], voxels of each region in each token.
    """
    voxels = counts.to(tokens.device, torch.float32).flatten(1)
    return (voxels @ tokens.flatten(1).T).cpu().double()


def _mean(sums: Tensor, counts: Tensor) -> np.ndarray:
    """float32 [regions C] of sums over the voxels."""
    voxels = torch.tensor(_voxels(counts)).clamp(min=1)
    return (sums / voxels[:, None]).float().numpy()


def _voxels(counts: Tensor) -> tuple[int, ...]:
    """Of each region, from those of its tokens [regions *grid]."""
    return tuple(counts.flatten(1).sum(1, dtype=torch.int64).tolist())


@dataclass(frozen=True)
class Windows:
    """The windows of one scan: first voxels, size, and for every map the weights of their tokens.

    tents: for each map and axis, a window's start to the weights of its tokens (`_tents`).
    """

    starts: list[Shape]
    size: Shape
    strides: tuple[Shape, ...]
    tents: list[list[dict[int, Tensor]]]

    @classmethod
    def of(cls, encoder: Encoder, shape: Shape, window: Window) -> Windows:
        size, strides = window_for(encoder, shape, window), encoder.strides
        by_axis = [_starts(*axis) for axis in zip(shape, size, strides[-1], strict=True)]
        tents = [_tents(by_axis, shape, size, stride) for stride in strides]
        return cls(list(product(*by_axis)), size, strides, tents)

    def voxels(self, start: Shape) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(start, self.size, strict=True))

    def tokens(self, start: Shape, number: int, grid: Shape) -> tuple[slice, ...]:
        """Where a window's tokens lie in the map [C *grid] of the whole scan."""
        axes = zip(start, grid, self.strides[number], strict=True)
        return (slice(None), *(slice(a // step, a // step + n) for a, n, step in axes))

    def weights(self, start: Shape, number: int) -> Tensor:
        """The weights of a window's tokens, [*grid]."""
        z, y, x = (tent[a] for tent, a in zip(self.tents[number], start, strict=True))
        return z[:, None, None] * y[:, None] * x

    def weighted(self, tokens: Tensor, start: Shape, number: int) -> Tensor:
        """A window's tokens [C *grid] of a map, each times its weight."""
        return tokens * self.weights(start, number).to(tokens.device)


def _maps(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """[Z Y X] to five maps [C *grid], on the encoder's device."""
    device = next(encoder.parameters()).device
    batch = encoder.batch(image)
    if encoder.dims == 3:
        return [tokens[0].float() for tokens in encoder(batch.to(device))]
    parts = [encoder(some.to(device)) for some in batch.split(SLICES)]
    return [_stacked(stage) for stage in zip(*parts, strict=True)]


def _stacked(slices: Sequence[Tensor]) -> Tensor:
    """Maps of slices [some C Y X] as one of the volume, [C Z Y X]."""
    return torch.cat(tuple(slices)).movedim(0, 1).float()


def _regions(prepared: Prepared, labels: tuple[int, ...]) -> Iterator[np.ndarray]:
    """bool [Z Y X] of the body and of each label, one at a time: a hundred take much memory."""
    yield prepared.body if prepared.body.any() else np.ones_like(prepared.body)
    for label in labels:
        yield prepared.labels == label


def _labels_present(labels: np.ndarray | None) -> tuple[int, ...]:
    """Those that occur, without 0."""
    return () if labels is None else tuple(int(label) for label in np.unique(labels) if label != 0)


def _voxel_counts(regions: Iterable[np.ndarray], strides: tuple[Shape, ...]) -> list[Tensor]:
    """For each map [regions *grid]: voxels of each region in each token. Few bytes per token."""
    found, parts = [], map(torch.from_numpy, regions)
    for before, stride in pairwise([(1, 1, 1), *strides]):
        step = floor_div(stride, before)
        # of voxels fewer than 256, which one byte can count
        kind = torch.uint8 if not found and np.prod(step) < 256 else torch.int32
        parts = torch.stack([_cell_sums(part, step).to(kind) for part in parts])
        found.append(parts)
    return found


def _cell_sums(volume: Tensor, step: Shape) -> Tensor:
    """[Z Y X] summed over cells of `step`, the last ones as far as they go."""
    cells = ceil_div(volume.shape, step)
    pairs = [number for pair in zip(cells, step, strict=True) for number in pair]
    padded = _zero_padded(volume, round_up(volume.shape, step))
    return padded.view(pairs).sum((1, 3, 5), dtype=torch.int32)


def _zero_padded(volume: Tensor, shape: Shape) -> Tensor:
    """With zeros at the end of each axis."""
    padded = volume.new_zeros(shape)
    padded[tuple(map(slice, volume.shape))] = volume
    return padded


def _starts(length: int, size: int, unit: int) -> list[int]:
    """Where windows begin along an axis: multiples of `unit`, overlapping by about half."""
    if length <= size:
        return [0]
    step = max(unit, size // 2 // unit * unit)
    last = -(-(length - size) // unit) * unit
    return [*range(0, last, step), last]


def _tents(
    starts: list[list[int]], shape: Shape, size: Shape, stride: Shape
) -> list[dict[int, Tensor]]:
    """For each axis: a window's start to the weights of its tokens, everywhere 1 in all."""
    axes = zip(starts, shape, size, stride, strict=True)
    return [_tents_along(*axis) for axis in axes]


def _tents_along(starts: list[int], length: int, size: int, step: int) -> dict[int, Tensor]:
    total = torch.zeros(-(-length // step))
    slices, tents = {}, {}
    for start in starts:
        count = -(-(min(length, start + size) - start) // step)
        slices[start] = slice(start // step, start // step + count)
        tents[start] = _tent(count)
        total[slices[start]] += tents[start]
    return {start: tent / total[slices[start]] for start, tent in tents.items()}


def _tent(count: int) -> Tensor:
    """[count]: 1, 2, ..., 2, 1: how far a token is from its window's edge."""
    up = torch.arange(1.0, count + 1)
    return torch.minimum(up, up.flip(0))
