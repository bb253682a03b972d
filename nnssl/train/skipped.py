"""How many steps were skipped because their gradient was not finite, counted on the device."""

from __future__ import annotations

import torch
from torch import Tensor


class SkippedSteps:
    """Two counts: of the last steps in a row, and since the counts were last read."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(2, dtype=torch.long, device=device)
        self._kept = torch.tensor([0, 1]).to(device)  # what a step that counts leaves of them

    def count(self, finite: Tensor) -> None:
        """After each step, without waiting: `finite` is a bool scalar on the device."""
        kept = self._counts * self._kept
        torch.where(finite, kept, self._counts + 1, out=self._counts)

    def read(self) -> tuple[int, int]:
        """Both counts; waits for the device."""
        in_a_row, since = self._counts.tolist()
        self._counts[1] = 0
        return in_a_row, since
