"""A GPU's step without a GPU: PyTorch's meta device, and what it lacks.

Every operation of a step is dispatched with the shapes and types that it has on a GPU, but without
values, so what would ask the device for a value fails. The device knows no generator, no fused
optimiser and no autocast; they are lent to it. The Triton kernels, of window attention and
of the residual stream, are one operation each way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Protocol
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.bench.memory import Autocast
from nnssl.encoder import attention, stream
from nnssl.train import optimiser
from nnssl.types import GradContext

META = torch.device("meta")
BF16 = torch.bfloat16
WAITS = (
    "torch.tensor(..., device=...) waits: make it on the CPU and use nnssl.host_memory.to_device"
)


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


class _KernelContext(GradContext, Protocol):
    parts: torch.Size | None


class _StreamContext(GradContext, Protocol):
    adds: bool
    drops: bool
    parts: torch.Size


class Kernel(torch.autograd.Function):
    """The shapes and types of `nnssl.encoder.attention.launch`, and nothing else of it."""

    note: Callable[[str, tuple[Tensor, ...]], None] = staticmethod(lambda *_: None)

    @staticmethod
    def forward(
        ctx: _KernelContext, qkv: Tensor, bias: Tensor, parts: Tensor | None = None
    ) -> Tensor:
        windows, n, _, heads, d = qkv.shape
        ctx.parts = None if parts is None else parts.shape
        out = qkv.new_empty(windows, n, heads * d)
        ctx.save_for_backward(qkv, bias)
        Kernel.note("window attention", (qkv, bias, out))
        return out

    @staticmethod
    def backward(ctx: _KernelContext, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        qkv, bias = ctx.saved_tensors
        found = torch.empty_like(qkv), torch.empty_like(bias)
        sums = bias.new_empty(ctx.parts) if ctx.parts else None
        Kernel.note("window attention, backward", (qkv, bias, gradient, *found))
        return *found, sums


def _note_kernel(name: str, *tensors: Tensor | None) -> None:
    """Tells what a kernel reads and writes; None: nothing."""
    Kernel.note(name, tuple(tensor for tensor in tensors if tensor is not None))


class Stream(torch.autograd.Function):
    """The same of `nnssl.encoder.stream.launch`."""

    @staticmethod
    def forward(
        ctx: _StreamContext,
        x: Tensor,
        branch: Tensor | None,
        kept: Tensor | None,
        order: Tensor | None,
        norm: nn.LayerNorm | None,
        parts: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.adds, ctx.drops, ctx.parts = branch is not None, kept is not None, parts.shape
        total, out = torch.empty_like(x), None if norm is None else torch.empty_like(x)
        ctx.save_for_backward(total)
        _note_kernel("residual and norm", x, branch, kept, order, total, out)
        return total, out

    @staticmethod
    def backward(
        ctx: _StreamContext, to_total: Tensor | None, to_out: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (total,) = ctx.saved_tensors
        to_x = torch.empty_like(total)
        to_branch = torch.empty_like(total) if ctx.drops else to_x
        parts = total.new_empty(ctx.parts, dtype=torch.float32)
        own_branch = to_branch if ctx.drops else None  # else the same tensor as to_x
        _note_kernel(
            "residual and norm, backward", total, to_total, to_out, to_x, parts, own_branch
        )
        return to_x, to_branch if ctx.adds else None, None, None, None, parts


class Gelu(torch.autograd.Function):
    """The same of `nnssl.encoder.stream.launch`."""

    @staticmethod
    def forward(ctx: GradContext, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: GradContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        to_x, parts = torch.empty_like(x), bias.new_empty(bias.shape)
        Kernel.note("gelu and bias, backward", (x, gradient, to_x, parts))
        return to_x, parts


class _Lent:
    """What stands in for PyTorch's own while the meta device is lent what it lacks."""

    def __init__(self, mode: Switched) -> None:
        self.mode = mode
        self.own_generator, self.own_tensor = torch.Generator, torch.tensor
        self.own_autocast, self.own_is_autocast = torch.autocast, torch.is_autocast_enabled

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        return self.own_generator("cpu" if torch.device(device) == META else device)

    def autocast(
        self,
        device: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> AbstractContextManager:
        if device == META.type:
            return self.mode.switched(enabled)
        return self.own_autocast(device, dtype, enabled, cache_enabled)

    def is_autocast_enabled(self, *device: str) -> bool:
        return self.mode.on if META.type in device else self.own_is_autocast(*device)

    def tensor(
        self,
        data: object,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **more: bool,
    ) -> Tensor:
        """Refused on the device: it waits there, where no mode can see it."""
        if torch.device(device or "cpu") == META:
            raise AssertionError(WAITS)
        return self.own_tensor(data, dtype=dtype, device=device, **more)

    def substitutes(self) -> Iterator[tuple[object, str, object]]:
        """Where each name lives, the name, and what stands in for it."""
        for name in ("Generator", "autocast", "is_autocast_enabled", "tensor"):
            yield torch, name, getattr(self, name.lower())
        fused = [*optimiser.FUSED, META.type]
        yield optimiser, "FUSED", tuple(fused)
        optim = sys.modules[torch.optim.Optimizer.__module__]
        yield optim, "_get_fused_kernels_supported_devices", lambda: list(fused)
        for part in (attention, stream):
            yield part.choice, "is_supported", lambda device, *_: device.type == META.type


ATTENTION_LAUNCH = SimpleNamespace(
    attention=lambda qkv, bias, _, *parts: Kernel.apply(qkv, bias, *parts)
)
STREAM_LAUNCH = SimpleNamespace(
    added_norm=Stream.apply,
    gelu=Gelu.apply,
    programs=lambda x: 4 * 132,  # of an H100's 132 multiprocessors
)


def _lend_fused_adamw(stack: ExitStack) -> None:
    """That whose rate is a tensor, which the device does not know either."""
    library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
    library.impl("_fused_adamw_.tensor_lr", lambda *_, **__: None, "Meta")


@contextmanager
def lent() -> Iterator[torch.device]:
    """The device, ready for a `Run`."""
    mode = Switched()
    with ExitStack() as stack:
        for where, name, stands_in in _Lent(mode).substitutes():
            stack.enter_context(patch.object(where, name, stands_in))
        _lend_fused_adamw(stack)
        stack.enter_context(patch.object(attention, "launch", ATTENTION_LAUNCH, create=True))
        stack.enter_context(patch.object(stream, "launch", STREAM_LAUNCH, create=True))
        stack.enter_context(mode)
        yield META
