"""Random crops of the preprocessed scans: partial reads, each a pure function of (seed, index)."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Protocol

import blosc2
import numpy as np
import torch
from torch import Tensor

from nnssl.data.plan import Plan
from nnssl.data.positions import Body, draw_start
from nnssl.files import inside, names_in, read_json
from nnssl.types import Shape

VOXELS, PARCELS = ".b2nd", ".parcels.b2nd"  # of a case
# nnU-Net opens its store in the same way; mapping does not work on Windows (MIC-DKFZ/nnUNet issue
# 2723)
OPEN: dict = {
    "mode": "r",
    "dparams": {"nthreads": 1},
    **({} if os.name == "nt" else {"mmap_mode": "r"}),
}


def stored_array(path: Path | str) -> blosc2.NDArray:
    """A volume [1 *size] as nnU-Net and we store it, opened and not read."""
    array = blosc2.open(str(path), **OPEN)
    if not isinstance(array, blosc2.NDArray):
        raise ValueError(f"{path} is not a stored volume: it holds a {type(array).__name__}")
    return array


class CropSource(Protocol):
    """Where the notes and voxels of preprocessed scans come from.

    late: only the process that trains can cut boxes (`Crops.cut`), not those that read.
    """

    late: bool

    def note(self, case: str) -> dict: ...

    def box(self, name: str, start: np.ndarray, box: np.ndarray, padding: float) -> Tensor:
        """The box [*box] at `start` of the volume in file `name`; what is outside is `padding`."""
        ...


class Stored:
    """The files of a folder, opened where they are read; only the box is decompressed."""

    late = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, case: str) -> dict:
        return read_json(inside(self.folder, f"{case}.json"))

    def box(self, name: str, start: np.ndarray, box: np.ndarray, padding: float) -> Tensor:
        return torch.from_numpy(read_box(inside(self.folder, name), start, box, padding))


class Crops(torch.utils.data.Dataset):
    """`crops[index]` -> {"crop": [1 *shape] as stored (float16, or float32 of earlier versions),
    "index", "scan", "rejected": int, "start", "size": int64 [dims]}.

    `index` is the number of the sample in the whole run: index // len(crops) is the epoch, in which
    every case comes once, in an order of its own. A shape of two axes gives axial slices [1 Y X].
    `rejected` counts the positions that held too little body; `scan` is the index in `cases` of the
    scan that was read, `start` the crop's first voxel in it (negative where the crop is larger than
    the scan), and `size` the scan's own size. Files are opened where they are read, so workers may
    fork or spawn. Raises IndexError below 0.

    parcels: read "parcels" uint8 [*shape] as well (`nnssl.data.parcel_maps`), 0 outside of the
    scan.
    cases: ids of the scans, in their order; default: those of the plan that could be preprocessed.
    source: the folder's files; `nnssl.data.held.Held` may take their place. Where it is late, a
    sample has "corner" int64 [3], the crop's first voxel by (z, y, x), in place of "crop".
    """

    def __init__(
        self,
        folder: Path | str,
        plan: Plan,
        shape: Shape | None = None,
        seed: int = 0,
        cases: Sequence[str] | None = None,
        parcels: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.fingerprint = plan.fingerprint
        self.shape = _check_shape(shape or plan.crop, plan)
        self.seed = seed
        self.cases = self._stored(plan) if cases is None else self._requested(cases)
        self.padding, self.parcels = plan.padding, parcels
        self.source: CropSource = Stored(self.folder)
        self._box = np.array((1,) * (3 - len(self.shape)) + self.shape)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def _stored(self, plan: Plan) -> tuple[str, ...]:
        """Cases that can be read; those noted as failed are left out, but a case that is just
        absent is an error.
        """
        names = names_in(self.folder)
        stored = tuple(case.id for case in plan.cases if is_stored(case.id, names))
        done = set(stored)
        failed = sum(c.id not in done and f"{c.id}.failed.json" in names for c in plan.cases)
        self._check_complete(len(stored), failed, len(plan.cases))
        return stored

    def _check_complete(self, stored: int, failed: int, planned: int) -> None:
        """The numbers of cases."""
        if not stored or stored + failed < planned:
            raise ValueError(
                f"{stored} of the {planned} cases of the plan are preprocessed in {self.folder}; "
                "run nnssl_pretrain again with the same -i or -d to preprocess the rest"
            )

    def _requested(self, cases: Sequence[str]) -> tuple[str, ...]:
        names = names_in(self.folder)
        gone = [case for case in cases if not is_stored(case, names)]
        if gone:
            raise ValueError(
                f"{len(gone)} of the {len(cases)} scans that this run trains on are no longer in "
                f"{self.folder}, such as {gone[0]}: put the raw scans back and preprocess them "
                "again with -i or -d; or start a new run on the remaining scans from this run's "
                "encoder: --from checkpoint_latest.pth -o FOLDER, without --c"
            )
        return tuple(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict:
        if index < 0:
            raise IndexError(f"sample numbers start at 0, got {index}")
        scan = self._scan(index)
        case = self.cases[scan]
        properties = self._properties(case)
        generator = np.random.default_rng((self.seed, index))
        start, rejected = draw_start(Body.from_note(properties), self._box, generator)
        dims = len(self.shape)
        return {
            **self._crop_or_corner(case, start),
            "index": index,
            "scan": scan,
            "rejected": rejected,
            "start": torch.tensor(start[-dims:].tolist()),
            "size": torch.tensor(properties["shape"][-dims:]),
        }

    def _crop_or_corner(self, case: str, start: np.ndarray) -> dict:
        """What `cut` needs where crops are cut late."""
        if self.source.late:
            return {"corner": torch.tensor(start.tolist())}
        return self._read(case, start)

    @property
    def endings(self) -> tuple[str, ...]:
        """The endings of the files that are read of each case."""
        return (VOXELS, PARCELS) if self.parcels else (VOXELS,)

    def cut(self, batch: dict) -> dict:
        """The batch, whose crops are cut late, with "crop" [B 1 *shape], and "parcels"."""
        corners = zip(batch["scan"].tolist(), batch["corner"].tolist(), strict=True)
        crops = [self._read(self.cases[scan], np.array(corner)) for scan, corner in corners]
        return {**batch, **{key: torch.stack([one[key] for one in crops]) for key in crops[0]}}

    def _scan(self, index: int) -> int:
        """The index in `cases` of the scan of sample `index`."""
        epoch, position = divmod(index, len(self.cases))
        return int(self._order_in(epoch)[position])

    def _order_in(self, epoch: int) -> np.ndarray:
        """The indices in `cases` as they come in this epoch; the last epoch's is kept."""
        if self._order[0] != epoch:
            # A stream of its own: (seed, index) above has no third entry.
            generator = np.random.default_rng((self.seed, epoch, 1))
            self._order = epoch, generator.permutation(len(self.cases))
        return self._order[1]

    def _properties(self, case: str) -> dict:
        properties = self.source.note(case)
        if properties["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.folder / case}.json was written by plan {properties['fingerprint']}, not "
                f"by {self.fingerprint}; files of two plans are never mixed: delete "
                f"{self.folder}, or choose another --name"
            )
        return properties

    def _read(self, case: str, start: np.ndarray) -> dict:
        """The crop [1 *shape], and its parcels; what is outside of the scan is air, and none."""
        voxels = self.source.box(f"{case}{VOXELS}", start, self._box, self.padding)
        read = {"crop": voxels.view(1, *self.shape)}
        if self.parcels:
            labels = self.source.box(f"{case}{PARCELS}", start, self._box, 0)
            read["parcels"] = labels.view(self.shape)
        return read


def read_box(path: Path, start: np.ndarray, box: np.ndarray, padding: float) -> np.ndarray:
    """The box [*box] at `start` of a stored volume [1 *size]; what is outside is `padding`."""
    array = stored_array(path)
    source, target = overlap(start, box, array.shape[1:])
    voxels = np.asarray(array[(0, *source)])
    if voxels.shape == tuple(box):
        return voxels
    padded = np.full(box, padding, voxels.dtype)
    padded[target] = voxels
    return padded


def overlap(
    start: np.ndarray, box: np.ndarray, shape: Shape
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What the box [*box] at `start` and a volume [*shape] have in common: its slices in the
    volume, and in the box.
    """
    low, high = start.clip(0), np.minimum(start + box, shape)
    return _slices(low, high), _slices(low - start, high - start)


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, low.tolist(), high.tolist()))


def _check_shape(shape: Sequence[int], plan: Plan) -> Shape:
    shape = tuple(shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"a crop has two or three axes of at least one voxel, got {shape}; the plan's is "
            f"{plan.crop}"
        )
    return shape


def is_stored(case: str, names: Container[str]) -> bool:
    """Whether the voxels of a case and its note are stored; `names`: of the files in the folder."""
    return f"{case}.json" in names and f"{case}{VOXELS}" in names
