"""What a training step costs on a device: time, throughput, memory, waiting, and its fraction of
the device's peak.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from nnssl.bench.timing import events, peak_memory, wait_for
from nnssl.train.peak import peak_of

if TYPE_CHECKING:
    from torch._C._autograd import _KinetoEvent

Found = TypeVar("Found")


def step_costs(
    step: Callable[[], object],
    scans: int,
    device: torch.device,
    seconds: float,
    flops: float | None,
) -> dict:
    """Costs of `step`, which sees so many `scans` and makes so many `flops`, within about so many
    seconds.
    """
    first, _ = _timed(step, 1, device)  # with all that is compiled
    memory = peak_memory(step, device)
    once, _ = _timed(step, 1, device)
    whole, issued = _timed(step, max(1, min(50, int(0.5 * seconds / once))), device)
    return {
        "ms": 1e3 * whole,
        "scans_per_second": scans / whole,
        "scans": scans,
        "peak_mib": memory / 2**20,
        "first_s": first,
        "host_ms": 1e3 * issued,
        **_traced(step, device),
        **_rate(flops, whole, device),
    }


def _traced(step: Callable[[], object], device: torch.device) -> dict:
    return {"waits": _or_none(waits, step, device), "idle": _or_none(idle, step, device)}


def _timed(step: Callable[[], object], count: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, over so many: until the device has ended it, and until it was issued."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    issued = (time.perf_counter() - began) / count
    wait_for(device)
    return (time.perf_counter() - began) / count, issued


def _rate(flops: float | None, seconds: float, device: torch.device) -> dict:
    """In TFLOP/s, and as a fraction of the device's peak; None where either is not known."""
    if flops is None:
        return {"tflops": None, "of_peak": None}
    rate = flops / seconds / 1e12
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {"tflops": rate, "of_peak": rate / peak if peak else None}


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
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with _warning_of_waits():
            step()
    return sum("synchroniz" in str(warning.message) for warning in said)


@contextmanager
def _warning_of_waits() -> Iterator[None]:
    """PyTorch warns of each within."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def idle(step: Callable[[], object], device: torch.device) -> float:
    """The fraction of three steps in which no kernel ran, while they were traced."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wait_for(device)
        each, _ = _timed(step, 3, device)
    return max(0.0, 1 - _busy_seconds(profile) / (3 * each))


def _busy_seconds(profile: torch.profiler.profile) -> float:
    return sum(event.duration_ns() for event in events(profile) if _is_kernel(event)) / 1e9


def _is_kernel(event: _KinetoEvent) -> bool:
    """Or a copy; not a name for a stretch of time, such as "Optimizer.step"."""
    is_name = event.name().startswith(("Optimizer.", "ProfilerStep"))
    is_note = getattr(event, "is_user_annotation", bool)()
    on_device = event.device_type() == torch.autograd.DeviceType.CUDA
    return on_device and not (is_name or is_note)
