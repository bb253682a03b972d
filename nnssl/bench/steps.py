"""A training step of a method, through the engine's own `Run`, on crops that are no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate

from nnssl.methods import Method
from nnssl.train.graph import WARM_UP, StepGraph
from nnssl.train.precision import half_precision
from nnssl.train.run import Run, RunConfig


def sample(crop: Tensor, number: int) -> dict:
    """The crop [C *region] of scan `number`, as the data loader gives it; it is the whole scan."""
    region = crop.shape[1:]
    return {
        "crop": crop,
        "index": number,
        "scan": number,
        "rejected": 0,
        "start": torch.zeros(len(region), dtype=torch.long),
        "size": torch.tensor(region),
    }


def step_of(
    method: Method,
    name: str,
    samples: Sequence[dict],
    device: torch.device,
    graph: bool = False,
) -> Callable[[], object]:
    """Gradients and update of one batch of `samples`, in bf16 where the device is good at it.

    graph: replayed as one CUDA graph. Raises RuntimeError where it cannot be captured.
    """
    batch = default_collate(list(samples))
    if device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    bf16 = half_precision(device) == torch.bfloat16
    config = RunConfig(10_000, len(samples), bf16=bf16, graph=graph)
    run = Run(method, list(samples), config, Path(), {"method": name}, device)

    if graph:
        return partial(_captured(run, batch).step, [batch])

    def step() -> None:
        run.gradients([batch])
        run.update()

    return step


def _captured(run: Run, batch: dict) -> StepGraph:
    """With the step already captured."""
    graph = StepGraph(run, print)
    for _ in range(WARM_UP + 1):
        graph.step([batch])
    if graph.failed:
        raise RuntimeError("the step could not be captured as a CUDA graph")
    return graph
