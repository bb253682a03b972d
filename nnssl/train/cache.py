"""Whether a run holds its collection in memory: on the GPU, in the host's RAM, or not.

A matter of speed alone: the crops are the same bit for bit, so a run that continues may choose
again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nnssl import dist
from nnssl.data.crops import Crops
from nnssl.data.held import Held, Layout, layout
from nnssl.data.plan import Plan, resampled_shape
from nnssl.train.capacity import free_bytes

CHOICES = ("auto", "ram", "gpu", "off")
# Of the free memory, what `auto` takes at most: training needs the rest (capacity.SHARE).
AUTO = {"gpu": 0.25, "ram": 0.5}
AUTO_ON_CPU = 0.25  # for "ram", where training takes the same memory
ASKED = 0.8  # of the free memory, what is taken at most where it is asked for by name
WORDS = {"gpu": "GPU memory", "ram": "host memory for this process"}


def hold(
    crops: Crops, plan: Plan, choice: str, device: torch.device, say: Callable[[str], None]
) -> None:
    """Let `crops` come from memory where `choice` (one of CHOICES) and the free memory allow it; say
    in one line what was chosen, and why.

    All processes of a run choose alike, and each holds all of it. Raises ValueError where what is
    asked for by name cannot be.
    """
    check(choice, device)
    if choice == "off":
        return say("cache: off, as asked; crops are read from the disk")
    places = [choice] if choice != "auto" else ["gpu", "ram"] if device.type == "cuda" else ["ram"]
    expected, reasons = least_bytes(crops, plan), []
    found: Layout | None = None
    for place in places:
        fraction = _fraction(place, choice, device)
        free = free_bytes(device if place == "gpu" else torch.device("cpu"))
        allowed = int(fraction * free)
        if _fits(expected, allowed, device):
            # Volumes of earlier versions are larger than expected, which their headers tell.
            found = found or layout(Path(crops.folder), crops.cases, crops.endings)
            expected = found.bytes
        rule = f"{fraction:.0%} of {free / 1e9:.1f} GB of free {WORDS[place]}"
        if found is not None and _fits(found.bytes, allowed, device):
            say(f"cache: {place}, {size(found.bytes)} in all, within {rule}")
            where = device if place == "gpu" else torch.device("cpu")
            crops.source = Held(found, where)
            return None
        reasons.append(f"{size(expected)} are more than {rule}")
    if choice != "auto":
        raise ValueError(
            f"--cache {choice}: {reasons[0]}; --cache auto takes what fits, --cache off reads from "
            "the disk"
        )
    return say(f"cache: off, crops are read from the disk: {'; '.join(reasons)}")


def check(choice: str, device: torch.device) -> None:
    """Raise ValueError for what cannot be on this device."""
    if choice not in CHOICES:
        raise ValueError(f"--cache {choice} is not known; known: {', '.join(CHOICES)}")
    if choice == "gpu" and device.type != "cuda":
        raise ValueError(
            f"--cache gpu needs -device cuda, the device is {device.type}: --cache ram holds the "
            "scans in the host's memory"
        )


def least_bytes(crops: Crops, plan: Plan) -> int:
    """What the crops' volumes take in half precision, by the plan: no file is asked."""
    taken = set(crops.cases)
    shapes = [
        resampled_shape(case.shape, case.spacing, plan.spacing)
        for case in plan.cases
        if case.id in taken
    ]
    voxels = int(np.prod(np.array(shapes, dtype=np.int64), axis=1).sum())
    return voxels * (2 + (len(crops.endings) - 1))  # of parcels a byte each


def size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _fraction(place: str, choice: str, device: torch.device) -> float:
    if choice != "auto":
        return ASKED
    return AUTO_ON_CPU if place == "ram" and device.type == "cpu" else AUTO[place]


def _fits(needed: int, allowed: int, device: torch.device) -> bool:
    """Whether it fits for every process."""
    return bool(dist.all_reduce_min(int(needed <= allowed), device))
