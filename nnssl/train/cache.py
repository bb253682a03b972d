"""Whether a run holds its collection in memory, and where: on the GPU, in host RAM, or not at all.

A matter of speed alone: the crops are the same bit for bit, so a run that continues may choose
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from nnssl import dist
from nnssl.data.crops import Crops
from nnssl.data.held import Held, HeldVolumes, layout
from nnssl.data.plan import Plan, resampled_shape
from nnssl.train.capacity import free_bytes
from nnssl.train.pretrain_options import CACHES
from nnssl.types import PrintFn

# Of the free memory, what `auto` takes at most: training needs the rest (capacity.FRACTION).
AUTO = {"gpu": 0.25, "ram": 0.5}
AUTO_ON_CPU = 0.25  # for "ram", where training takes the same memory
BY_NAME = 0.8  # of the free memory, what is taken at most where it is chosen by name
WORDS = {"gpu": "GPU memory", "ram": "host memory for this process"}


def hold(crops: Crops, plan: Plan, choice: str, device: torch.device, print_fn: PrintFn) -> None:
    """Let `crops` come from memory where `choice` (one of CACHES) and the free memory allow it.

    Prints in one line what was chosen, and why.

    All processes of a run choose alike, and each holds all of it. Raises ValueError where what
    was chosen by name cannot be.
    """
    require_supported(choice, device)
    if choice == "off":
        return print_fn("cache: off, as set by --cache; crops are read from disk")
    expected, reasons = least_bytes(crops, plan), []
    found: HeldVolumes | None = None
    for memory in _memories(choice, device):
        if _fits_on_all_ranks(expected, memory.allowed, device):
            # Volumes of earlier versions are larger than expected; their headers give the size.
            found = found or layout(Path(crops.folder), crops.cases, crops.endings)
            expected = found.bytes
        if found is not None and _fits_on_all_ranks(found.bytes, memory.allowed, device):
            print_fn(f"cache: {memory.name}, {size(found.bytes)} in all, within {memory}")
            crops.source = Held(found, memory.device)
            return None
        reasons.append(f"{size(expected)} exceed {memory}")
    _require_automatic(choice, reasons)
    return print_fn(f"cache: off, crops are read from disk: {'; '.join(reasons)}")


def _require_automatic(choice: str, reasons: list[str]) -> None:
    if choice != "auto":
        raise ValueError(
            f"--cache {choice}: {reasons[0]}; --cache auto uses what fits, --cache off reads from "
            "disk"
        )


@dataclass(frozen=True)
class _Memory:
    """A memory that may hold the collection, and how much of it is free.

    name:     "gpu" or "ram".
    free:     bytes.
    fraction: of the free bytes, what is taken at most.
    """

    name: str
    device: torch.device
    free: int
    fraction: float

    @property
    def allowed(self) -> int:
        return int(self.fraction * self.free)

    def __str__(self) -> str:
        return f"{self.fraction:.0%} of {self.free / 1e9:.1f} GB of free {WORDS[self.name]}"


def _memories(choice: str, device: torch.device) -> Iterator[_Memory]:
    """Those to try, in this order."""
    automatic = ["gpu", "ram"] if device.type == "cuda" else ["ram"]
    for name in automatic if choice == "auto" else [choice]:
        memory_device = device if name == "gpu" else torch.device("cpu")
        fraction = _fraction(name, choice, device)
        yield _Memory(name, memory_device, free_bytes(memory_device), fraction)


def require_supported(choice: str, device: torch.device) -> None:
    """Raise ValueError for a choice that is impossible on this device."""
    if choice not in CACHES:
        raise ValueError(f"unknown --cache {choice}; known: {', '.join(CACHES)}")
    if choice == "gpu" and device.type != "cuda":
        raise ValueError(
            f"--cache gpu needs -device cuda, the device is {device.type}: --cache ram holds the "
            "scans in the host's memory"
        )


def least_bytes(crops: Crops, plan: Plan) -> int:
    """What the crops' volumes take in half precision, by the plan: no file is read."""
    taken = set(crops.cases)
    shapes = (
        resampled_shape(case.shape, case.spacing, plan.spacing)
        for case in plan.cases
        if case.id in taken
    )
    voxels = sum(map(prod, shapes))
    return voxels * (2 + (len(crops.endings) - 1))  # parcels are one byte per voxel


def size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _fraction(name: str, choice: str, device: torch.device) -> float:
    if choice != "auto":
        return BY_NAME
    if name == "ram" and device.type == "cpu":
        return AUTO_ON_CPU
    return AUTO[name]


def _fits_on_all_ranks(needed: int, allowed: int, device: torch.device) -> bool:
    """Whether it fits for every process."""
    return bool(dist.all_reduce_min(int(needed <= allowed), device))
