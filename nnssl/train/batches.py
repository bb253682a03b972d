"""Which scan goes where: every random number of a run is a function of (seed, sample), never of the process.

Sample number i of the run is the same crop, with the same views, whether one process or eight are training, with
or without accumulation, before or after a resume. That is what makes resuming exact and processes equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from nnssl import dist, signals


def mixed_seed(*parts: object) -> int:
    """A 63-bit seed that differs wherever any of `parts` differs."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, index: int) -> torch.Generator:
    """The source of chance for the views of sample `index`."""
    return torch.Generator().manual_seed(mixed_seed(seed, "views", index))


class MicroBatches:
    """A batch sampler: the sample numbers of each micro-batch of this process, from step `start` on."""

    def __init__(self, start: int, steps: int, batch_size: int, accumulate: int) -> None:
        parts = dist.world_size() * accumulate
        if batch_size % parts:
            raise ValueError(
                f"a total batch of {batch_size} cannot be shared by {dist.world_size()} processes x {accumulate} "
                f"accumulated parts; choose a --batch-size that is a multiple of {parts}"
            )
        self.start, self.steps = start, steps
        self.batch_size, self.accumulate = batch_size, accumulate
        self.size = batch_size // parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            for part in range(self.accumulate):
                first = step * self.batch_size + (part * dist.world_size() + dist.rank()) * self.size
                yield list(range(first, first + self.size))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate


def loader(crops: Dataset, batches: MicroBatches, workers: int, pin_memory: bool) -> DataLoader:
    """Crops in the order of `batches`, read ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
    )


def default_workers(device: torch.device) -> int:
    """One reader beside a CPU run; on a GPU as many as the cores this process may count on, at most eight."""
    if device.type == "cpu":
        return 1
    return (
        max(1, min(8, len(os.sched_getaffinity(0)) // dist.world_size() - 1)) if hasattr(os, "sched_getaffinity") else 4
    )


def _quiet_worker(_: int) -> None:
    # A cluster signals every process of a job; the loop decides when reading stops, not the reader.
    signals.unmoved()
    torch.set_num_threads(1)
