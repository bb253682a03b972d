"""A collection held in memory: its preprocessed volumes side by side in one block, as they are
stored.

A block in the host's memory is shared by all processes that read crops: those that are forked see
the same pages, to the others PyTorch hands a handle of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnssl import dist, limits
from nnssl.data.crops import overlap, stored_array
from nnssl.files import inside, read_json
from nnssl.types import Shape

ALIGNED = 64  # bytes: where a volume may begin


@dataclass(frozen=True)
class Volume:
    """Where a volume [*shape] lies in the block, in bytes from its start."""

    first: int
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, block: Tensor) -> Tensor:
        """A view of the volume in the block, uint8 [bytes]."""
        part = block[self.first : self.first + self.bytes]
        return part.view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class HeldVolumes:
    """The volumes of a collection by their files' names, their notes, and the bytes of all."""

    folder: Path
    volumes: dict[str, Volume]
    notes: dict[str, dict]
    bytes: int


def layout(folder: Path, cases: Sequence[str], endings: Sequence[str]) -> HeldVolumes:
    """The files <case><ending> of each case: each is opened, and no voxel is read."""
    names = [f"{case}{ending}" for case in cases for ending in endings]
    with ThreadPoolExecutor(limits.cores()) as pool:
        notes = list(pool.map(lambda case: read_json(inside(folder, f"{case}.json")), cases))
        kinds = list(pool.map(lambda name: _kind(inside(folder, name)), names))
    volumes, end = _side_by_side(dict(zip(names, kinds, strict=True)))
    return HeldVolumes(folder, volumes, dict(zip(cases, notes, strict=True)), end)


def _side_by_side(
    kinds: dict[str, tuple[Shape, torch.dtype]],
) -> tuple[dict[str, Volume], int]:
    """A place for each volume of these shapes and types, and the bytes of all."""
    volumes, first = {}, 0
    for name, (shape, dtype) in kinds.items():
        volumes[name] = volume = Volume(first, shape, dtype)
        first += -(-volume.bytes // ALIGNED) * ALIGNED
    return volumes, first


def _kind(path: Path) -> tuple[Shape, torch.dtype]:
    """Shape [Z Y X] and type of a stored volume [1 Z Y X]."""
    array = stored_array(path)
    return tuple(array.shape[1:]), torch.from_numpy(np.empty(0, array.dtype)).dtype


class Held:
    """The volumes of `layout`, read whole, on `device`: a `CropSource`. Crops are cut from them as
    from the files, bit for bit.

    late: crops are not cut by the processes that read, but where the block is: `Crops.cut`.
    """

    def __init__(self, layout: HeldVolumes, device: torch.device, late: bool | None = None) -> None:
        self.late = device.type != "cpu" if late is None else late
        self.notes, self._volumes = layout.notes, layout.volumes
        self._block: Tensor | None = torch.empty(layout.bytes, dtype=torch.uint8, device=device)
        self._fill(layout.folder)

    def _read(self, path: Path, name: str) -> None:
        self._volume(name).copy_(torch.from_numpy(stored_array(path)[:][0]))

    def _fill(self, folder: Path) -> None:
        """Read every volume. Decompression lets other threads run; a volume at a time is in memory
        twice for each.
        """
        with ThreadPoolExecutor(limits.cores()) as pool, _loading_bar(len(self._volumes)) as bar:
            for _ in pool.map(lambda name: self._read(folder / name, name), self._volumes):
                bar.update()

    def __getstate__(self) -> dict:
        """For a reading process: it needs only the notes if crops are cut late."""
        return {**self.__dict__, "_block": None} if self.late else self.__dict__

    def note(self, case: str) -> dict:
        return self.notes[case]

    def box(self, name: str, start: np.ndarray, box: np.ndarray, padding: float) -> Tensor:
        """The box [*box] at `start` of a volume; what lies outside of it is `padding`."""
        volume = self._volume(name)
        source, target = overlap(start, box, volume.shape)
        inner = volume[source]
        if inner.shape == tuple(box):
            return inner.clone(memory_format=torch.contiguous_format)
        padded = volume.new_full(tuple(box), _rounded(padding, volume.dtype))
        padded[target] = inner
        return padded

    def _volume(self, name: str) -> Tensor:
        if self._block is None:
            raise RuntimeError("a reading process holds no volumes: crops are cut late")
        return self._volumes[name].of(self._block)


def _loading_bar(volumes: int) -> tqdm:
    return tqdm(
        total=volumes,
        desc="into memory",
        unit="volume",
        disable=not dist.is_main(),
        dynamic_ncols=True,
    )


def _rounded(value: float, dtype: torch.dtype) -> float:
    """Rounded once, as NumPy does where it fills an array of this type."""
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    return np.asarray(value).astype(numpy_dtype).item()
