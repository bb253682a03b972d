"""What a training step costs on a device: time, throughput, memory, waiting, and its fraction of
the device's peak.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from nnssl.bench.timing import events, peak_memory
from nnssl.train.peak import peak_of

if TYPE_CHECKING:
    from torch._C._autograd import _KinetoEvent

Found = TypeVar("Found")


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


def _or_none(
    ask: Callable[[Callable[[], object], torch.device], Found],
    step: Callable[[], object],
    device: torch.device,
) -> Found | None:
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
    kernels = [
        e
        for e in events(profile)
        if e.device_type() == torch.autograd.DeviceType.CUDA and not _is_note(e)
    ]
    return max(0.0, 1 - sum(e.duration_ns() for e in kernels) / 1e9 / whole)


def _is_note(event: _KinetoEvent) -> bool:
    """A name for a stretch of time, such as "Optimizer.step", rather than a kernel or a copy."""
    return (
        event.name().startswith(("Optimizer.", "ProfilerStep"))
        or getattr(event, "is_user_annotation", bool)()
    )
