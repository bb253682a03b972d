"""fp32 matrix products by oneDNN instead of MKL.

On processors with AVX-512 that are not Intel's, oneDNN computes them about twice as fast: MKL does
not use AVX-512 there. PyTorch gives them to oneDNN where it is told that they need not be exact
(`torch.set_float32_matmul_precision("medium")`). With AVX-512 they are as exact as before. Where
the processor has units for bf16 (AMX, some ARM), oneDNN rounds the factors to it and adds up in
fp32, as a GPU does, which is faster again. On other processors nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def by_onednn(device: torch.device, exact: bool = False) -> Iterator[None]:
    """Inside the block, or the function that it decorates, where `device` is a CPU.

    exact: nowhere, so that no processor rounds to bf16.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        torch.set_float32_matmul_precision("highest" if exact else "medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def in_fp32(device: torch.device) -> Iterator[None]:
    """Inside the block products of fp32 tensors round nothing to bf16: neither by autocast, nor on
    a processor with units for it. For what is divided by a small temperature or added up over many
    rows. The backward pass is outside.
    """
    with torch.autocast(device.type, enabled=False), by_onednn(device, exact=True):
        yield
