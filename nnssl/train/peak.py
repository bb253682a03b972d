"""Hardware utilisation of a run: operations over the data sheet's peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnssl import dist
from nnssl.encoder.attention import choice
from nnssl.methods.method import Method
from nnssl.modules.running import discard_all
from nnssl.train.capacity import trial
from nnssl.types import Shape

# Dense tensor-core TFLOP/s in bf16 (fp16 for V100 and T4, which have no bf16), from NVIDIA's data
# sheets, by a part of the device's name; the longest that fits counts.
PEAKS = {
    "V100": 125.0, "T4": 65.0, "A100": 312.0, "A10": 125.0, "A10G": 70.0, "A30": 165.0,
    "A40": 149.7, "L4": 121.0, "L40": 181.0, "L40S": 362.0, "H100": 989.0, "H100 PCIe": 756.0,
    "H100 NVL": 835.0, "H200": 989.0, "GH200": 989.0, "B200": 2250.0, "RTX A5000": 111.0,
    "RTX A6000": 154.8, "RTX 6000 Ada": 364.2, "RTX 3080": 59.5, "RTX 3090": 71.0,
    "RTX 4080": 97.5, "RTX 4090": 165.2, "RTX 5090": 209.5,
}  # fmt: skip


def peak_of(name: str) -> float | None:
    """TFLOP/s of the device called `name`; None where it is not known."""
    words = name.replace("-", " ").replace("_", " ").split()
    fits = [known for known in PEAKS if _runs_through(known.split(), words)]
    return PEAKS[max(fits, key=len)] if fits else None


def _runs_through(part: list[str], words: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words)))


def fraction_of_peak_per_scan(method: Method, crop: Shape, device: torch.device) -> float:
    """The fraction of the peak of all devices that one scan a second takes; 0 where no peak is
    known.

    Counted on a step of one synthetic scan, before anything is compiled.
    """
    peak = peak_of(name_of(device))
    if peak is None:
        return 0.0

    def step() -> None:
        method(trial(method, crop, device)).losses["total"].backward()

    try:
        with dist.alone():  # another process may know no peak, or have no memory for it
            counted = operations(step)
    except RuntimeError:  # of a figure in the log no run may die, not for memory either
        counted = 0.0
    method.zero_grad(set_to_none=True)
    discard_all(method)
    return counted / (1e12 * peak * dist.world_size())


def name_of(device: torch.device) -> str:
    """What the data sheets call it, as far as they do."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def operations(step: Callable[[], object]) -> float:
    """Floating-point operations of matrix products and convolutions in `step`, views and backward
    pass included.
    """
    with without_kernel(), FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


@contextmanager
def without_kernel() -> Iterator[None]:
    """Attention as PyTorch's own operations, which can be counted."""
    before = choice.is_supported
    choice.is_supported = lambda *_: False
    try:
        yield
    finally:
        choice.is_supported = before
