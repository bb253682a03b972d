"""Losses shared by at least two methods; computed in fp32, even under autocast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.modules.running import RunningMean

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def masked_l1(
    predictions: Sequence[Float[Tensor, "batch 1 *size"]],
    target: Float[Tensor, "batch 1 *size"],
    masked: Bool[Tensor, "batch 1 *size"],
    beta: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over views of each view's mean error over its hidden voxels, and over the predictions.

    All [B 1 *spatial], `masked` True = hidden. sum(|x - x^| * M) / sum(M) (Xie 2022, eq. 2, one
    channel); errors below `beta` count by their square (smooth L1), so that voxels which are nearly
    right do not pull like those of a wrong organ. A view that hides nothing counts as 0, with a
    gradient.
    """
    counts = masked.flatten(1).sum(dim=1).clamp(min=1) * (len(predictions) * len(masked))
    weight = masked / counts.view(-1, *[1] * (masked.ndim - 1))
    target = target.float()
    errors = [
        F.smooth_l1_loss(p.float(), target, reduction="none", beta=beta).flatten()
        for p in predictions
    ]
    return reduce(add, (torch.dot(error, weight.flatten()) for error in errors))


def accuracy_of(
    logits: Float[Tensor, "rows classes"], targets: Int[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """The fraction of rows whose answer has the largest logit, without gradient."""
    return (logits.detach().argmax(dim=1) == targets).float().mean()


def soft_cross_entropy(
    student: Float[Tensor, "rows prototypes"],
    teacher: Float[Tensor, "rows prototypes"],
    temperature: float,
) -> Float[Tensor, " rows"]:
    """CE(p_t, p_s) for each row: student logits [N K], teacher probabilities [N K] -> [N].

    Caron 2021 (DINO), eq. 2: -sum_k p_t log softmax(student / temperature).
    """
    return -(teacher * F.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1)


def cross_view(
    student: Float[Tensor, "views batch prototypes"],
    teacher: Float[Tensor, "taught batch prototypes"],
    temperature: float,
) -> Float[Tensor, ""]:
    """The mean CE over all pairs of a teacher's and another view: logits [V B K], probabilities [T
    B K] -> scalar.

    The teacher's views are the first T of the student's; no view is asked for its own target (Caron
    2021, eq. 3). Raises ValueError when that leaves no pair.
    """
    views, targets = len(student), len(teacher)
    if views < max(2, targets):
        raise ValueError(
            f"cross-view pairs need 2 views and as many as the teacher's {targets}, got {views}"
        )
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    # CE is linear in its target: one product per view, whatever the pairs
    every = teacher.sum(dim=0, keepdim=True)
    selected = every - teacher
    if views > targets:
        selected = torch.cat([selected, every.expand(views - targets, -1, -1)])
    pairs = targets * (views - 1) * student.shape[1]
    return torch.dot(selected.flatten(), log_p.flatten()) * (-1 / pairs)


class Centre(RunningMean):
    """The running mean of a teacher's logits, subtracted before its softmax (Caron 2021, eq. 4)."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__(prototypes, momentum)

    @torch.no_grad()
    def sharpen(
        self,
        logits: Float[Tensor, "rows prototypes"],
        temperature: float | Tensor,
        counts: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows prototypes"]:
        """p_t = softmax((logits - centre) / temperature), [N K] -> [N K], without gradient; notes
        the logits, or those of which `counts` [N] is 1.
        """
        logits = logits.float()
        self.accumulate(logits, counts)
        return F.softmax((logits - self.value) / temperature, dim=-1)
