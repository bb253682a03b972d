"""The host's part of a step that is replayed on the device, such as a teacher's temperature.

A step that is captured (`nnssl.train.graph`) is replayed with the numbers with which it was
captured. So while a `HostPart` records, each number that differs from step to step is a scalar on
the device, always in the same slot, into which `again` writes the host's new one before a replay.
Otherwise a number is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_recording: HostPart | None = None


class HostPart:
    """The host's actions of a step in their order, and the slots of its numbers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._actions: list[Callable[[], object]] = []
        self._slots: list[Tensor] = []
        self._used = 0  # numbers of the step so far
        self._captured = False

    @contextmanager
    def recorded(self, captured: bool) -> Iterator[None]:
        """Inside, what `happen` and `number` are given is noted for `again`.

        captured: the device does nothing yet, so the host does not either. A step that is not
        captured must have been recorded before: the slots are made there.
        """
        global _recording
        self._actions, self._used, self._captured = [], 0, captured
        _recording = self
        try:
            yield
        finally:
            _recording = None

    def again(self) -> None:
        """The host's part of one more step, before a replay."""
        for action in self._actions:
            action()

    def record(self, action: Callable[[], object]) -> None:
        self._actions.append(action)
        if not self._captured:
            action()

    def device_scalar(self, compute: Callable[[], float]) -> Tensor:
        slot = self._next_slot()
        self.record(lambda: slot.fill_(compute()))
        return slot

    def _next_slot(self) -> Tensor:
        """The slot of the step's next number; made where there is none yet."""
        if self._used == len(self._slots):
            if self._captured:
                raise RuntimeError(
                    "this step needs a host number that the recorded step did not use"
                )
            self._slots.append(torch.zeros((), device=self.device))
        self._used += 1
        return self._slots[self._used - 1]


def number(compute: Callable[[], float]) -> float | Tensor:
    """What `compute` returns; in a step that is recorded, a scalar on the device that holds it."""
    return compute() if _recording is None else _recording.device_scalar(compute)


def happen(action: Callable[[], object]) -> None:
    """Do `action`, which moves what the host knows, now and in every replay."""
    if _recording is None:
        action()
    else:
        _recording.record(action)
