"""The teacher: an exponential moving average of the student, never trained, never stochastic."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """Starts as a copy of the student; moves towards it by `update`; always in evaluation mode (no drop path)."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, matched by name. Buffers stay the teacher's own: what they hold
        (running moments) is of what the teacher sees, which is not masked."""
        parameters = dict(student.named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.lerp_(parameters[name].detach(), 1 - momentum)
