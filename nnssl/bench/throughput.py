"""What a training step costs on a device: time, throughput, memory, waiting, and its fraction of
the device's peak.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnssl.bench.timing import peak_memory
from nnssl.encoder.attention import choice

# Dense tensor-core TFLOP/s in bf16 (fp16 for V100 and T4, which have no bf16), from NVIDIA's data
# sheets, by a part of the device's name; the longest that fits counts.
PEAKS = {
    "V100": 125.0,
    "T4": 65.0,
    "A100": 312.0,
    "A10": 125.0,
    "A10G": 70.0,
    "A30": 165.0,
    "A40": 149.7,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "RTX A5000": 111.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX 3080": 59.5,
    "RTX 3090": 71.0,
    "RTX 4080": 97.5,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
}


def peak_of(name: str) -> float | None:
    """TFLOP/s of the device called `name`; None where it is not known."""
    words = name.replace("-", " ").replace("_", " ").split()
    fits = [known for known in PEAKS if _runs_through(known.split(), words)]
    return PEAKS[max(fits, key=len)] if fits else None


def _runs_through(part: list[str], words: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words)))


def measure(
    step: Callable[[], object],
    scans: int,
    device: torch.device,
    seconds: float,
    flops: float | None,
) -> dict:
    """Costs of `step`, which sees so many `scans` and makes so many `flops`, within about so many
    seconds.
    """
    began = time.perf_counter()
    step()
    _wait(device)
    first = time.perf_counter() - began  # with all that is compiled
    memory = peak_memory(step, device)
    began = time.perf_counter()
    step()
    _wait(device)
    once = time.perf_counter() - began
    count = max(1, min(50, int(0.5 * seconds / once)))
    began = time.perf_counter()
    for _ in range(count):
        step()
    issued = (time.perf_counter() - began) / count
    _wait(device)
    whole = (time.perf_counter() - began) / count
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    rate = None if flops is None else flops / whole / 1e12
    return {
        "ms": 1e3 * whole,
        "scans_per_second": scans / whole,
        "scans": scans,
        "peak_mib": memory / 2**20,
        "first_s": first,
        "host_ms": 1e3 * issued,
        "waits": _or_none(waits, step, device),
        "idle": _or_none(idle, step, device),
        "tflops": rate,
        "of_peak": rate / peak if rate is not None and peak else None,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _or_none(ask: Callable, step: Callable[[], object], device: torch.device):
    """What `ask` finds on a GPU; None elsewhere, and where its tool does not work: the times stand
    without it.
    """
    try:
        return ask(step, device) if device.type == "cuda" else None
    except Exception as error:
        print(f"  {ask.__name__} not measured: {type(error).__name__}: {error}", flush=True)
        return None


def waits(step: Callable[[], object], device: torch.device) -> int:
    """How often PyTorch makes the host wait for the GPU in a step."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in said)


def idle(step: Callable[[], object], device: torch.device) -> float:
    """The fraction of three steps in which no kernel ran, while they were traced."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _wait(device)
        began = time.perf_counter()
        for _ in range(3):
            step()
        _wait(device)
        whole = time.perf_counter() - began
    events = profile.profiler.kineto_results.events()
    kernels = [
        e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and not _is_note(e)
    ]
    return max(0.0, 1 - sum(e.duration_ns() for e in kernels) / 1e9 / whole)


def _is_note(event) -> bool:
    """A name for a stretch of time, such as "Optimizer.step", rather than a kernel or a copy."""
    return (
        event.name().startswith(("Optimizer.", "ProfilerStep"))
        or getattr(event, "is_user_annotation", bool)()
    )


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
    before = choice.kernel_serves
    choice.kernel_serves = lambda *_: False
    try:
        yield
    finally:
        choice.kernel_serves = before
