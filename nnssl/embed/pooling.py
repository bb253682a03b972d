"""The encoder's maps of whole scans: means over regions, and one map in full.

A scan is encoded as a whole up to WHOLE, and in windows that overlap by half beyond: a rule of scan
and encoder alone, so that the same scan has the same features on every machine. Windows begin at
multiples of the last stride, so that the tokens of all of them lie on one grid; where windows
overlap, a token counts more the farther it is from its window's edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.embed.scan import Prepared
from nnssl.types import Shape

if TYPE_CHECKING:
    from nnssl.embed.encoder import Encoder

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
    unit = encoder.strides[-1]
    least = (encoder.crop[0],) * (3 - len(encoder.crop)) + tuple(encoder.crop)
    if window == "whole" or (window is None and np.prod(shape) * encoder.channels[0] <= WHOLE):
        size = shape
    elif window is None:
        size = tuple(max(n, WINDOW) for n in least)
    else:
        size = tuple(window)
    return tuple(-(-n // step) * step for n, step in zip(size, unit, strict=True))


@torch.inference_mode()
def pool(
    encoder: Encoder,
    prepared: Prepared,
    dense: int | None = None,
    window: Window = None,
) -> Pooled:
    """Features of one scan; `dense`: the number of the map that is wanted in full."""
    image = torch.from_numpy(prepared.image)
    shape = tuple(image.shape)
    labels, regions = _regions(prepared)
    counts = _counts(regions, encoder.strides)
    size = window_for(encoder, shape, window)
    starts = [_starts(*axis) for axis in zip(shape, size, encoder.strides[-1], strict=True)]
    tents = [_tents(starts, shape, size, stride) for stride in encoder.strides]
    sums = [torch.zeros(len(regions), c, dtype=torch.float64) for c in encoder.channels]
    whole = None
    if dense is not None:
        whole = torch.zeros(encoder.channels[dense], *counts[dense].shape[1:])
    boxes = list(product(*starts))
    for box in boxes:
        cut = tuple(slice(a, a + n) for a, n in zip(box, size, strict=True))
        for number, tokens in enumerate(_maps(encoder, image[cut])):
            at, weight = _placed(box, tokens.shape[1:], encoder.strides[number], tents[number])
            weight = weight.to(tokens.device)
            flat = (tokens * weight).flatten(1)
            region = counts[number][(slice(None), *at)].to(tokens.device, torch.float32).flatten(1)
            sums[number] += (region @ flat.T).cpu().double()
            if whole is not None and number == dense:
                whole[(slice(None), *at)] += (tokens * weight).cpu()
    means = []
    for one, count in zip(sums, counts, strict=True):
        total = count.flatten(1).sum(1, dtype=torch.int64).clamp(min=1)
        means.append((one / total[:, None]).float().numpy())
    voxels = tuple(int(region.sum()) for region in regions[1:])
    dense_map = None if whole is None else whole.numpy()
    return Pooled(tuple(means), labels, voxels, dense_map, len(boxes))


def _maps(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """[Z Y X] to five maps [C *grid], on the encoder's device."""
    device = next(encoder.parameters()).device
    batch = encoder.batch(image)
    if encoder.dims == 3:
        return [tokens[0].float() for tokens in encoder(batch.to(device))]
    parts = [encoder(some.to(device)) for some in batch.split(SLICES)]
    return [torch.cat(stage).movedim(0, 1).float() for stage in zip(*parts, strict=True)]


def _regions(prepared: Prepared) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The labels that are there, and bool [Z Y X] of the body and of each of them."""
    body = prepared.body if prepared.body.any() else np.ones_like(prepared.body)
    if prepared.labels is None:
        return (), [body]
    there = tuple(int(label) for label in np.unique(prepared.labels) if label != 0)
    return there, [body, *(prepared.labels == label for label in there)]


def _counts(regions: list[np.ndarray], strides: tuple[Shape, ...]) -> list[Tensor]:
    """For each map [regions *grid]: voxels of each region in each token. Few bytes per token."""
    found, before = [], (1, 1, 1)
    for stride in strides:
        step = tuple(b // a for a, b in zip(before, stride, strict=True))
        kind = torch.uint8 if not found and np.prod(step) < 256 else torch.int32
        parts = [torch.from_numpy(r) for r in regions] if not found else list(found[-1])
        found.append(torch.stack([_summed(part, step).to(kind) for part in parts]))
        before = stride
    return found


def _summed(volume: Tensor, step: Shape) -> Tensor:
    """[Z Y X] summed over cells of `step`, the last ones as far as they go."""
    cells = [-(-n // s) for n, s in zip(volume.shape, step, strict=True)]
    padded = volume.new_zeros([c * s for c, s in zip(cells, step, strict=True)])
    padded[tuple(slice(n) for n in volume.shape)] = volume
    pairs = [number for pair in zip(cells, step, strict=True) for number in pair]
    return padded.view(pairs).sum((1, 3, 5), dtype=torch.int32)


def _starts(length: int, size: int, unit: int) -> list[int]:
    """Where windows begin along an axis: multiples of `unit`, overlapping by about half."""
    if length <= size:
        return [0]
    step = max(unit, size // 2 // unit * unit)
    last = -(-(length - size) // unit) * unit
    return [*range(0, last, step), last]


def _tents(starts: list[list[int]], shape: Shape, size: Shape, stride: Shape) -> list[dict]:
    """For each axis: a window's start to the weights of its tokens, everywhere 1 in all."""
    axes = []
    for begins, length, edge, step in zip(starts, shape, size, stride, strict=True):
        tokens = {begin: -(-(min(length, begin + edge) - begin) // step) for begin in begins}
        total = torch.zeros(-(-length // step))
        tents = {}
        for begin, count in tokens.items():
            up = torch.arange(1.0, count + 1)
            tents[begin] = torch.minimum(up, up.flip(0))
            total[begin // step : begin // step + count] += tents[begin]
        axes.append(
            {
                begin: tent / total[begin // step : begin // step + len(tent)]
                for begin, tent in tents.items()
            }
        )
    return axes


def _placed(box: Shape, grid: Shape, stride: Shape, tents: list[dict]) -> tuple[tuple, Tensor]:
    """Where a window's tokens lie in the scan's grid, and what each weighs [*grid]."""
    at = tuple(
        slice(start // step, start // step + n)
        for start, n, step in zip(box, grid, stride, strict=True)
    )
    z, y, x = (tent[start] for tent, start in zip(tents, box, strict=True))
    return at, z[:, None, None] * y[:, None] * x
