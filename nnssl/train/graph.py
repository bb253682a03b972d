"""A step as one CUDA graph: captured once, then replayed by a single call of the host.

    batch -> views -+-> the graph's own inputs -> losses, backward, clipping, optimiser, teacher
    host: chance, learning rate, temperature, momentum -> scalars of the graph

A step can be captured because it never synchronises, runs the same operations on the same shapes
whatever the views, keeps all persistent state at fixed addresses, and reads from the device the
numbers that the host changes (`nnssl.modules.replay`). tests/test_graph.py proves this on a CPU: it
records the operations of a step, replays them, and compares with steps that were not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nnssl import dist
from nnssl.modules.replay import HostPart
from nnssl.modules.running import discard_all
from nnssl.types import PrintFn

if TYPE_CHECKING:
    from nnssl.train.run import Run

WARM_UP = 3  # steps before the capture: they allocate what is allocated once

# What is returned by a function, and what repeats on the device all that the function did there.
Capture = Callable[[Callable[[], tuple]], tuple[tuple, Callable[[], None]]]


class StepResult(NamedTuple):
    """What a step returns: mean losses, what the last part monitors, the gradient norm and the
    learning rate.
    """

    losses: dict[str, Tensor]
    monitored: dict[str, Tensor]
    norm: Tensor
    rate: float


def cuda_capture(function: Callable[[], tuple]) -> tuple[tuple, Callable[[], None]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay


def why_not(device: torch.device, accumulate: int) -> str:
    """Why a step cannot be one graph; nothing where it can."""
    if device.type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU, not {device.type}"
    if dist.is_initialized():
        return f"it supports one process, not {dist.world_size()}"
    if accumulate > 1:
        return f"it supports steps without accumulation, not --accumulate {accumulate}"
    return ""


class StepGraph:
    """Makes the steps of `run`: the first ones as they come, then by replay.

    Where the capture fails, `print_fn` gets one line and no step is replayed.
    """

    def __init__(self, run: Run, print_fn: PrintFn, capture: Capture = cuda_capture) -> None:
        self.run, self.print_fn, self.capture = run, print_fn, capture
        self.host = HostPart(run.device)
        self.done, self.failed = 0, False
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._result: tuple = ()

    def step(self, micro_batches: list[dict]) -> StepResult:
        run = self.run
        if self.failed:
            return self._after_failure(micro_batches)
        if self.done < WARM_UP:
            return self._as_it_comes(micro_batches)
        (batch,) = micro_batches
        views = run.prepare_views(batch)
        if self._replay is None:
            self._try_capture(views)
        if self.failed:
            return self._after_failure(micro_batches)
        if self._replay is None or not self._fits(views):
            return run.advance(micro_batches)
        return self._replayed(views, self._replay)

    def _after_failure(self, micro_batches: list[dict]) -> StepResult:
        """Some versions of PyTorch do not leave a failed capture in order: its allocator or its
        random generator still captures.
        """
        try:
            return self.run.advance(micro_batches)
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise RuntimeError(
                "this version of PyTorch cannot continue in the process in which a capture has "
                "failed; type the same command with --c, without --graph"
            ) from error

    def _replayed(self, views: dict[str, Tensor], replay: Callable[[], None]) -> StepResult:
        run = self.run
        for name, buffer in self._inputs.items():
            buffer.copy_(views[name])
        rate = run.rate()
        run.begin_step()
        self.host.again()
        replay()
        losses, monitored, norm = self._result
        # the next replay overwrites what this one has left
        run.monitors.record(
            {n: value.clone() for n, value in monitored.items() if n == "embedding"}
        )
        return StepResult(losses, monitored, norm, rate)

    def _as_it_comes(self, micro_batches: list[dict]) -> StepResult:
        """The last of these is recorded, which allocates the host's numbers on the device."""
        self.done += 1
        if self.done != WARM_UP:
            return self.run.advance(micro_batches)
        with self.host.recorded(captured=False):
            return self.run.advance(micro_batches)

    def _fits(self, views: dict[str, Tensor]) -> bool:
        return _shapes_and_dtypes(views) == _shapes_and_dtypes(self._inputs)

    def _try_capture(self, views: dict[str, Tensor]) -> None:
        self._inputs = {name: view.clone() for name, view in views.items()}
        self.run.begin_step()
        try:
            with self.host.recorded(captured=True):
                self._result, self._replay = self.capture(self._captured)
        except Exception as error:  # whatever a driver may say
            self.failed = True
            discard_all(self.run.method)
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else ""
        self.print_fn(
            "\nWARNING: the step could not be captured as a CUDA graph; training continues "
            f"without it: {type(error).__name__}: {reason}"
        )

    def _captured(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        losses, (monitored,) = self.run.backward([self._inputs], 1)
        return losses, monitored, self.run.update()[0]


def _shapes_and_dtypes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
