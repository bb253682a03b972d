"""Losses that at least two methods share. Everything is computed in fp32, whatever autocast says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.modules.running import RunningMean


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


class Centre(RunningMean):
    """The running mean of the teacher's logits, subtracted before its softmax (Caron 2021, eq. 4)."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__(prototypes, momentum)

    @torch.no_grad()
    def sharpen(self, logits: Tensor, temperature: float) -> Tensor:
        """p_t = softmax((logits - centre) / temperature), [N K] -> [N K], without gradient; notes the logits."""
        logits = logits.float()
        self.note(logits)
        return F.softmax((logits - self.value) / temperature, dim=-1)
