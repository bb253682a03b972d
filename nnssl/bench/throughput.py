"""What a training step costs on a device: time, throughput, memory, waiting, and its fraction of
the device's peak.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from nnssl.bench.timing import events, peak_memory, wait_for
from nnssl.train.peak import peak_of

if TYPE_CHECKING:
    from torch._C._autograd import _KinetoEvent

Found = TypeVar("Found")

WAITED = "called a synchronizing CUDA operation"  # PyTorch's words
TRACED = 3  # steps
MOST, NAME = 12, 120  # kernels that are named, and characters of a name


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
    places = _or_none(waits, step, device)
    return {
        "waits": None if places is None else len(places),
        "waits_at": places,
        **(_or_none(trace, step, device) or {"idle": None, "kernels": None}),
    }


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


def waits(step: Callable[[], object], device: torch.device) -> list[str]:
    """Where PyTorch makes the host wait for the GPU in a step: files with the line."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with _warning_of_waits():
            step()
    waited = [warning for warning in said if WAITED in str(warning.message)]
    return [f"{warning.filename}:{warning.lineno}" for warning in waited]


@contextmanager
def _warning_of_waits() -> Iterator[None]:
    """PyTorch warns of each within."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def trace(step: Callable[[], object], device: torch.device) -> dict:
    """Of three steps: the fraction of the time in which no kernel ran, and the kernels that took
    the most, {name: ms per step}.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wait_for(device)
        each, _ = _timed(step, TRACED, device)
    taken = kernel_ms(filter(_is_kernel, events(profile)))
    busy = sum(taken.values()) / (1e3 * TRACED)
    most = {name: ms / TRACED for name, ms in islice(taken.items(), MOST)}
    return {"idle": max(0.0, 1 - busy / each), "kernels": most}


def kernel_ms(kernels: Iterable[_KinetoEvent]) -> dict[str, float]:
    """By name, over all calls, those that took the most first."""
    taken: Counter[str] = Counter()
    for kernel in kernels:
        taken[kernel.name()[:NAME]] += kernel.duration_ns()
    return {name: nanoseconds / 1e6 for name, nanoseconds in taken.most_common()}


def _is_kernel(event: _KinetoEvent) -> bool:
    """Or a copy; not a name for a stretch of time, such as "Optimizer.step"."""
    is_name = event.name().startswith(("Optimizer.", "ProfilerStep"))
    is_note = getattr(event, "is_user_annotation", bool)()
    on_device = event.device_type() == torch.autograd.DeviceType.CUDA
    return on_device and not (is_name or is_note)
