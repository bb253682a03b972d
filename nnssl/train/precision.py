"""The precision of a step, and the copies of the weights that it computes with.

In half precision: weights and tokens of the encoders, products and convolutions of heads and
decoders. In fp32: the weights that are trained, all moments and averages, losses, the softmax over
prototypes, and inside their kernels the statistics of all norms.

Autocast alone casts each weight at each layer and leaves the residual stream in fp32: some 800
kernels of a SMIT step, and half of the bytes that it moves. Here all weights are cast at once, and
an encoder whose weights are in half precision stays in it throughout (`nnssl.encoder.swin`).
Autocast is on as well, for what lies between: it has little left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnssl import dist
from nnssl.encoder.swin import Swin
from nnssl.types import GradContext

# Numbers that are cast at once. The gradients of a part are back when its last one is there; with
# several GPUs they are then exchanged while the backward pass continues.
PART = 1 << 22
BIAS = "relative_position_bias_table"  # added to scores in fp32


def half_precision(device: torch.device) -> torch.dtype | None:
    """bf16 where the device computes in it; None: fp32.

    NVIDIA GPUs do from compute capability 8.0 on (A100, RTX 30, L4, H100 and later). V100 and T4
    would emulate it, slower than fp32; CPUs and MPS train in fp32.
    """
    if device.type != "cuda":
        return None
    computes = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if computes else None


class Precision:
    """The precision of the steps of `model`; with `half` None it is fp32, and nothing is done.

    A module with `keeps_fp32` keeps its weights and those of its parts.
    """

    def __init__(self, model: nn.Module, device: torch.device, half: torch.dtype | None) -> None:
        self.device, self.half = device, half
        self._slots = [] if half is None else _weight_slots(model)

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Inside, for forward and backward passes, the model has its weights in half precision.

        They are cast once, on entering; gradients arrive at the weights themselves, in fp32.
        """
        # `_slots` names those that are there
        own = [cast("nn.Parameter", module._parameters[name]) for module, name in self._slots]
        if own and self.half is not None:
            copies = _lowered([*own], self.half)
            for (module, name), low in zip(self._slots, copies, strict=True):
                # for the length of a step a tensor that is no Parameter
                module._parameters[name] = low  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            for (module, name), weight in zip(self._slots, own, strict=True):
                module._parameters[name] = weight

    def autocast(self) -> torch.autocast:
        """For forward passes; it knows no other precision of a CPU's than bf16."""
        kind = self.half or torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.half is not None)


def _weight_slots(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Module and name of each weight that is cast: an encoder's, and of products elsewhere."""
    kept = _inside(model, lambda module: getattr(module, "keeps_fp32", False))
    cast_in = _inside(model, lambda module: isinstance(module, Swin))
    cast_in |= {module for module in model.modules() if isinstance(module, nn.Linear | _ConvNd)}
    return [
        (module, name)
        for module in model.modules()
        if module in cast_in and module not in kept
        for name, weight in module._parameters.items()
        if weight is not None and weight.dtype == torch.float32 and name != BIAS
    ]


def _inside(model: nn.Module, matches: Callable[[nn.Module], bool]) -> set[nn.Module]:
    """The modules of `model` that match, with all their parts."""
    found = filter(matches, model.modules())
    return {part for module in found for part in module.modules()}


def _lowered(weights: list[Tensor], half: torch.dtype) -> list[Tensor]:
    """Copies of `weights` in `half`; differentiable, of those that are trained."""
    trained = [weight for weight in weights if weight.requires_grad and torch.is_grad_enabled()]
    copies = iter([copy for part in _weight_buckets(trained) for copy in _Lower.apply(half, *part)])
    ids = {id(weight) for weight in trained}
    fixed = [weight.detach() for weight in weights if id(weight) not in ids]
    others = iter(_cast(fixed, half))
    return [next(copies if id(weight) in ids else others) for weight in weights]


def _weight_buckets(weights: list[Tensor]) -> list[list[Tensor]]:
    """`weights`, in their order, in parts of at least `PART` numbers, but for the last.

    One process waits for nobody: it casts them all at once.
    """
    if not dist.is_initialized():
        return [weights] if weights else []
    parts, size = [], PART
    for weight in weights:
        if size >= PART:
            parts.append([])
            size = 0
        parts[-1].append(weight)
        size += weight.numel()
    return parts


class _Lower(torch.autograd.Function):
    """Weights to `half`, and their gradients back: one kernel for all of them, each way."""

    @staticmethod
    def forward(ctx: GradContext, half: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that had no part in the loss gets no gradient
        return tuple(_cast(weights, half))

    @staticmethod
    def backward(ctx: GradContext, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        raised = iter(_cast([g for g in gradients if g is not None], torch.float32))
        return None, *(None if gradient is None else next(raised) for gradient in gradients)


def _cast(tensors: Sequence[Tensor], kind: torch.dtype) -> list[Tensor]:
    copies = [torch.empty(t.shape, dtype=kind, device=t.device) for t in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
