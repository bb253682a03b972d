"""A GPU's step without a GPU: PyTorch's meta device, and what it lacks.

Every operation of a step is dispatched with the shapes and types that it has on a GPU, but without
values, so what would ask the device for a value fails. The device knows no generator, no fused
optimiser and no autocast; they are lent to it. The Triton kernel of window attention is one
operation each way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from nnssl.bench.memory import Autocast
from nnssl.encoder import attention
from nnssl.train import run
from nnssl.types import GradContext

META = torch.device("meta")
BF16 = torch.bfloat16


class Switched(Autocast):
    """CUDA's autocast in bf16, switched on and off by `torch.autocast("meta", ...)`."""

    def __init__(self) -> None:
        super().__init__(BF16)
        self.on = False

    def __torch_function__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if self.on:
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before


class Kernel(torch.autograd.Function):
    """The shapes and types of `nnssl.encoder.attention.launch`, and nothing else of it."""

    note: Callable[[str, tuple[Tensor, ...]], None] = staticmethod(lambda *_: None)

    @staticmethod
    def forward(ctx: GradContext, qkv: Tensor, bias: Tensor) -> Tensor:
        windows, n, _, heads, d = qkv.shape
        out = qkv.new_empty(windows, n, heads * d)
        ctx.save_for_backward(qkv, bias)
        Kernel.note("window attention", (qkv, bias, out))
        return out

    @staticmethod
    def backward(ctx: GradContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        found = torch.empty_like(qkv), torch.empty_like(bias)
        Kernel.note("window attention, backward", (qkv, bias, gradient, *found))
        return found


@contextmanager
def lent() -> Iterator[torch.device]:
    """The device, ready for a `Run`. `torch.tensor` on it is refused: it waits, unseen by modes."""
    fused = (*run.FUSED, META.type)
    generator, autocast, tensor = torch.Generator, torch.autocast, torch.tensor
    mode = Switched()
    kernel = SimpleNamespace(attention=lambda qkv, bias, mask: Kernel.apply(qkv, bias))

    def a_generator(device: torch.device | str = "cpu") -> torch.Generator:
        return generator("cpu" if torch.device(device) == META else device)

    def an_autocast(
        device: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> AbstractContextManager:
        if device == META.type:
            return mode.switched(enabled)
        return autocast(device, dtype, enabled, cache_enabled)

    def a_tensor(
        data: object,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **more: bool,
    ) -> Tensor:
        if torch.device(device or "cpu") == META:
            raise AssertionError(
                "torch.tensor(..., device=...) waits: make it on the CPU and use "
                "nnssl.memory.to_device"
            )
        return tensor(data, dtype=dtype, device=device, **more)

    with ExitStack() as stack:
        for where, name, stands_in in (
            (torch, "Generator", a_generator),
            (torch, "autocast", an_autocast),
            (torch, "tensor", a_tensor),
            (run, "FUSED", fused),
            (
                sys.modules[torch.optim.Optimizer.__module__],
                "_get_fused_kernels_supported_devices",
                lambda: list(fused),
            ),
            (attention.choice, "kernel_serves", lambda device, *_: device.type == "meta"),
        ):
            stack.enter_context(patch.object(where, name, stands_in))
        stack.enter_context(patch.object(attention, "launch", kernel, create=True))
        stack.enter_context(mode)
        yield META
