"""The optimiser of a run, and a step of it for which the host does not wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from nnssl.methods.method import MethodConfig
from nnssl.modules.late import forget_waiting
from nnssl.modules.replay import number
from nnssl.train.learning_rate import parameter_groups

# devices on which PyTorch's AdamW reads from the device that a step does not count
FUSED = ("cpu", "cuda")


def adamw(
    model: nn.Module, config: MethodConfig, device: torch.device, captured: bool
) -> torch.optim.AdamW:
    """`torch.optim.AdamW`; `captured`: its step will be part of a CUDA graph."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        betas=(0.9, config.beta2),
        fused=device.type in FUSED,
        capturable=captured,
    )


def restore(
    optimizer: torch.optim.Optimizer, state: dict, device: torch.device, captured: bool
) -> None:
    """Load `state`, with the options that this device needs, whatever wrote it."""
    for group in state["param_groups"]:  # by these the numbers of steps are put on the device
        group["fused"], group["capturable"] = device.type in FUSED, captured
    optimizer.load_state_dict(state)


def clip_and_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    device: torch.device,
    most: float,
    rate: Callable[[], float],
) -> tuple[Tensor, Tensor]:
    """Shorten the gradient to the length `most` (0: not at all) and move the weights at the rate
    `rate()`.

    Returns the gradient's length before, and whether it was finite; if not, no weight moves. Both
    are on the device.
    """
    fused = device.type in FUSED
    norm = gradient_norm(parameters) if fused else clip(parameters, most)
    finite = norm < math.inf
    rate_there, rate_here = number(rate), rate()
    for group in optimizer.param_groups:
        group["lr"] = rate_there
    if fused:
        # the words of PyTorch's own scaler: it divides the gradient, or moves no weight
        optimizer.grad_scale = _excess(norm, most)  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
    if fused or finite:
        optimizer.step()
        forget_waiting(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate_here
    return norm, finite


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The length of the whole gradient, on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


@torch.no_grad()
def clip(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Shorten the gradient to the length `most`; its length before, on the device.

    As `torch.nn.utils.clip_grad_norm_`, with calls for whole lists of tensors on every device.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = gradient_norm(parameters)
    torch._foreach_div_([p.grad for p in parameters if p.grad is not None], _excess(norm, most))
    return norm


def _excess(norm: Tensor, most: float) -> Tensor:
    """By what a gradient of length `norm` must be divided to be no longer than `most`; 0: any
    length.
    """
    return (norm / most).clamp(min=1.0) if most else torch.ones_like(norm)
