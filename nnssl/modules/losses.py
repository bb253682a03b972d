"""Losses that at least two methods share. Everything is computed in fp32, whatever autocast says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl import dist


def masked_l1(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean absolute error over hidden voxels: all three [B 1 *spatial], `masked` True = hidden.

    sum(|x - x^| * M) / sum(M) (Xie 2022, eq. 2, one channel). Zero, with a gradient, where nothing is hidden.
    """
    weight = masked.to(torch.float32)
    error = (predicted.float() - target.float()).abs()
    return (error * weight).sum() / weight.sum().clamp(min=1.0)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """CE(p_t, p_s) for each row: student logits [N K], teacher probabilities [N K] -> [N].

    Caron 2021 (DINO), eq. 2: -sum_k p_t log softmax(student / temperature).
    """
    return -(teacher * F.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1)


class Centre(nn.Module):
    """The running mean of the teacher's logits, subtracted before its softmax (Caron 2021, eq. 4).

    `sharpen` turns teacher logits into targets and notes them; `update` then moves the centre, once per
    optimiser step, by the mean over all micro-batches and all processes.
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self._noted: list[Tensor] = []

    @torch.no_grad()
    def sharpen(self, logits: Tensor, temperature: float) -> Tensor:
        """p_t = softmax((logits - centre) / temperature), [N K] -> [N K], without gradient."""
        logits = logits.float()
        self._noted.append(logits.mean(dim=0))
        return F.softmax((logits - self.centre) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        if not self._noted:
            return
        mean = dist.mean(torch.stack(self._noted).mean(dim=0))
        self._noted.clear()
        if torch.isfinite(mean).all():  # a batch that overflowed must not poison every later target
            self.centre.lerp_(mean, 1 - self.momentum)

    def discard(self) -> None:
        """Forget what was noted since the last update: the step was skipped."""
        self._noted.clear()
