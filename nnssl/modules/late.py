"""Weights that stand still for the first part of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnssl.modules.replay import number

_LATE = "_nnssl_late"


def hold(weight: Tensor, trained: Callable[[], bool]) -> None:
    """Give the parameter `weight` gradients of zero while `trained()` is false."""

    def gradient_of(gradient: Tensor) -> Tensor:
        factor = number(lambda: float(trained()))
        if isinstance(factor, Tensor):
            return gradient * factor
        return gradient if factor else torch.zeros_like(gradient)

    weight.register_hook(gradient_of)
    setattr(weight, _LATE, True)


@torch.no_grad()
def forget_waiting(optimizer: torch.optim.Optimizer) -> None:
    """Count no step of a weight that has had gradients of zero alone, after each step.

    AdamW divides by 1 - beta2^step, since its second moment starts at 0. After 10,000 steps without
    a gradient the moment still is 0 but that divisor is 1, and the first gradients would move the
    weight by several times the learning rate.
    """
    for weight, state in optimizer.state.items():
        if getattr(weight, _LATE, False):
            begun = state["exp_avg_sq"].any()
            state["step"].mul_(begun.to(state["step"].device))
