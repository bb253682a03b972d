"""Positions of crops: boxes with enough body, drawn without reading a voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnssl.data.packing import unpack
from nnssl.shapes import ceil_div

# fraction of body in the whole box, padding counted, below which it is drawn again
LEAST_BODY = 0.35
DRAWS = 10


@dataclass(frozen=True)
class Body:
    """Where the body is in a preprocessed scan.

    fraction: of body voxels in each block, 0 to 255, float32 [Z Y X] in blocks; size: of the scan
    [3] in voxels; block: the edge of a block in voxels.
    """

    fraction: np.ndarray
    size: np.ndarray
    block: int

    @classmethod
    def from_note(cls, properties: dict) -> Body:
        """From the note that was stored with the voxels (`nnssl.data.preprocess`)."""
        size, block = properties["shape"], properties["body_block"]
        fraction = np.frombuffer(unpack(properties["body"]), np.uint8).astype(np.float32)
        return cls(fraction.reshape(ceil_div(size, [block] * len(size))), np.array(size), block)

    def cumulative_voxels(self) -> np.ndarray:
        """255 times the body voxels of all blocks up to each; where a scan has none, every block
        counts as full.
        """
        z, y, x = (self._lengths(axis) for axis in range(3))
        full = np.einsum("z,y,x->zyx", z, y, x)
        return (full * self.fraction if self.fraction.any() else full).ravel().cumsum()

    def _lengths(self, axis: int) -> np.ndarray:
        """Voxels of each block along `axis`; the last one may be cut off by the scan's end."""
        edges = np.arange(self.fraction.shape[axis]) * self.block
        return (np.minimum(edges + self.block, self.size[axis]) - edges).astype(np.float64)

    def draw_voxel(self, cumulative: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A voxel [3] of a block drawn by `cumulative_voxels`."""
        chosen = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
        number = min(chosen, len(cumulative) - 1)
        corner = np.array(np.unravel_index(number, self.fraction.shape)) * self.block
        return generator.integers(corner, np.minimum(corner + self.block, self.size))

    def fraction_in(self, start: np.ndarray, box: np.ndarray) -> float:
        """Fraction of body voxels of the whole box, taking each block as uniform; what is outside
        of the scan is none.
        """
        low, high = start.clip(0), np.minimum(start + box, self.size)
        body = self.fraction
        for axis in range(3):  # contracting the first axis brings the next one to the front
            edges = np.arange(body.shape[0]) * self.block
            ends = np.minimum(edges + self.block, high[axis])
            overlap = (ends - np.maximum(edges, low[axis])).clip(0)
            body = np.tensordot(overlap, body, 1)
        return float(body) / 255 / float(box.prod())


def draw_start(
    body: Body, box: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The first drawn start [3] of a box [3] with enough body, or else the best of DRAWS; and the
    number rejected.

    A body voxel is drawn, and the box around it uniformly from all that lie in the scan, so that
    every part of the body is seen and none more often for lying at the scan's end. Judged by the
    stored fraction of body in each block, so a rejected position costs no decompression.
    """
    cumulative = body.cumulative_voxels()
    best, most = np.zeros(3, int), -1.0
    for draw in range(DRAWS):
        voxel = body.draw_voxel(cumulative, generator)
        start = _start_around(voxel, body.size, box, generator)
        fraction = body.fraction_in(start, box)
        if fraction >= LEAST_BODY:
            return start, draw
        if fraction > most:
            best, most = start, fraction
    return best, DRAWS


def _start_around(
    voxel: np.ndarray, size: np.ndarray, box: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The start [3] of a box that holds `voxel`, drawn from all that lie in a scan of this size.

    A scan smaller than the box is centred in it, as nnU-Net does.
    """
    room = size - box
    first, last = (voxel - box + 1).clip(0), np.minimum(voxel, room.clip(0))
    return np.where(room > 0, generator.integers(first, last + 1), room // 2)
