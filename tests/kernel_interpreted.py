"""Runs the Triton kernels on a CPU, in Triton's interpreter, and prints what came out as JSON.

Run by test_kernel.py in a process of its own: Triton asks whether to interpret when it is first
imported.
"""

from __future__ import annotations

import json
import os
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from nnssl.encoder import attention, stream
from nnssl.encoder.attention import choice, kernel, launch, reference
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin

CPU = torch.device("cpu")
SHAPES = ((64, 1, 12), (27, 1, 24), (12, 3, 16), (5, 1, 33), (1, 1, 16))
dot = interpreter.InterpreterBuilder.create_dot


def _wide(x):
    """NumPy knows no bf16; the interpreter multiplies its bits as if they were whole numbers."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(
    self, _wide(a), _wide(b), *rest
)


def errors() -> dict:
    cases = [(torch.float32, shape) for shape in SHAPES] + [
        (torch.bfloat16, SHAPES[0]),
        (torch.float16, SHAPES[1]),
    ]
    return {
        f"{dtype} {shape}": choice.attention_errors(CPU, dtype, *shape) for dtype, shape in cases
    }


def stream_errors() -> dict:
    cases = ((torch.float32, 12), (torch.float32, 96), (torch.bfloat16, 12), (torch.float16, 24))
    return {
        f"{dtype} {width}": stream.choice.stream_kernel_errors(CPU, dtype, width)
        for dtype, width in cases
    }


def twice() -> list[bool]:
    """Whether two backward passes agree in every bit, with several programs and windows each."""
    torch.manual_seed(0)
    qkv = torch.randn(7, 8, 3, 2, 4, requires_grad=True)
    bias = torch.randn(2, 8, 8, requires_grad=True)
    gradient = torch.randn(7, 8, 8)
    launch._grid = lambda qkv, _: (qkv.shape[3], 3)
    runs = [
        torch.autograd.grad(launch.attention(qkv, bias, None), (qkv, bias), gradient)
        for _ in range(2)
    ]
    wanted = torch.autograd.grad(reference.attention(qkv, bias, None), (qkv, bias), gradient)
    same = [torch.equal(a, b) for a, b in zip(*runs, strict=True)]
    return [*same, *(torch.allclose(a, b, atol=1e-5) for a, b in zip(runs[0], wanted, strict=True))]


def looks(encoder: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    encoder.zero_grad()
    torch.manual_seed(1)  # of stochastic depth
    maps = encoder(image)
    sum((m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps).backward()
    return torch.cat(
        [t.detach().flatten() for t in [*maps, *(p.grad for p in encoder.parameters())]]
    )


def small_encoder(mode: str) -> Swin:
    """A small encoder whose first stage has shifted windows."""
    torch.manual_seed(0)
    return Swin(
        SwinConfig(
            embed_dim=4,
            depths=(2, 1, 3, 1),
            heads=(1, 2, 1, 1),
            windows=mode,
            window=2,
            drop_path=0.4,
        )
    )


def encoders() -> dict:
    """Of padded, clipped and shifted windows: the largest difference of maps and gradients to the
    CPU's attention.
    """
    found = {}
    for mode in ("exact", "smit"):
        encoder, image = small_encoder(mode), torch.randn(2, 1, 6, 6, 4)
        wanted = looks(encoder, image)
        with Everywhere(), mock.patch.object(stream.choice, "is_supported", return_value=True):
            found[mode] = float((looks(encoder, image) - wanted).abs().max() / wanted.abs().max())
    return found


def compiled() -> float:
    """Traced into one graph while every shape is tried: the largest difference to the eager
    kernel.
    """
    encoder, image = small_encoder("exact"), torch.randn(1, 1, 6, 6, 4)
    with Everywhere():
        choice.is_supported = torch.compiler.assume_constant_result(
            lambda *shape: choice._tried(*shape)
        )
        traced = looks(torch.compile(encoder, backend="aot_eager", fullgraph=True), image)
        assert choice._tried.cache_info().currsize > 1
        wanted = looks(encoder, image)
    return float((traced - wanted).abs().max() / wanted.abs().max())


class Everywhere:
    """Within it all attention goes through the kernel."""

    def __enter__(self):
        self.before = attention.cached.is_supported, choice.is_supported
        attention.cached.is_supported, choice.is_supported = lambda x: False, lambda *_: True

    def __exit__(self, *_):
        attention.cached.is_supported, choice.is_supported = self.before


def wrong() -> dict:
    """What `choice` says of a kernel that computes something else, and of one that does not run."""

    class Fails:
        def __getitem__(self, grid):
            raise RuntimeError("out of resource: shared memory\nRequired: 1 Hardware limit: 0")

    right, found = kernel.forward, {}
    kernel.forward = kernel.backward
    found["other arguments"] = choice._fault(CPU, torch.float32, 8, 1, 4)
    kernel.forward = Fails()
    found["fails"] = choice._fault(CPU, torch.float32, 8, 1, 4)
    kernel.forward = right
    exact = reference.attention
    reference.attention = lambda qkv, bias, mask: exact(qkv, bias * 1.1, mask)
    found["differs"] = choice._fault(CPU, torch.float32, 8, 1, 4)
    reference.attention = exact
    return {**found, "right": choice._fault(CPU, torch.float32, 8, 1, 4)}


if __name__ == "__main__":
    parts = (errors, stream_errors, encoders, compiled, wrong, twice)
    print(json.dumps({part.__name__: part() for part in parts}))
