"""Costs measured side by side: A B A B ... in one process, medians of the rounds, ratios round by
round.

Wall time suffers from neighbours on a shared machine; CPU time (user + system, all threads) much
less. Page faults tell how much memory the system had to hand out again.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from itertools import accumulate, product
from statistics import median

import torch

from nnssl.bench import markdown


@dataclass(frozen=True)
class Cost:
    """One call: wall and CPU seconds (user + system; `system` also alone) and minor page faults."""

    wall: float
    cpu: float
    system: float
    faults: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


Rounds = dict[str, list[Cost]]


def _now(device: torch.device) -> Cost:
    wait_for(device)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Cost(time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime, used.ru_minflt)


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def side_by_side(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> Rounds:
    """Run every call `warmup` times, then all of them in turn for `rounds` rounds; the cost of each
    call.
    """
    device = torch.device(device)
    for call in calls.values():
        for _ in range(warmup):
            call()
    costs: Rounds = {name: [] for name in calls}
    for _, (name, call) in product(range(rounds), calls.items()):
        costs[name].append(_cost(call, device))
    return costs


def _cost(call: Callable[[], object], device: torch.device) -> Cost:
    start = _now(device)
    call()
    return _now(device) - start


def ratio(costs: Rounds, name: str, base: str, what: str = "wall") -> float:
    """The median over rounds of `name`'s cost over `base`'s in the same round; `what` is a field of
    `Cost`.
    """
    pairs = zip(costs[name], costs[base], strict=True)
    return median(getattr(a, what) / max(getattr(b, what), 1e-9) for a, b in pairs)


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes by which tensors alive during `call` exceed those alive before it, at the highest.

    Counted at PyTorch's allocator, so that neither the C library's habits nor earlier calls have a
    part in it. Garbage is collected first: what is freed during `call` would lower its sum.
    """
    gc.collect()
    device = torch.device(device)
    return _peak_on_gpu(call, device) if device.type == "cuda" else _peak_on_cpu(call)


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], object]) -> int:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    changes = [event.nbytes() for event in events(profile) if event.name() == "[memory]"]
    return max(accumulate(changes, initial=0))


def events(profile: torch.profiler.profile) -> list:
    """What a profile has seen, once it is over."""
    results = profile.profiler and profile.profiler.kineto_results
    if results is None:
        raise RuntimeError("the profiler has seen nothing")
    return results.events()


def comparison_table(costs: Rounds, base: str, memory: Mapping[str, int] | None = None) -> str:
    """A Markdown table of medians, and of ratios to `base`; `memory` in bytes by the same names."""
    columns = ["", "wall s", "CPU s", "system s", "page faults", "wall ratio", "CPU ratio"]
    rows = [[name, *_medians(own), *_ratios(costs, name, base)] for name, own in costs.items()]
    if memory is not None:
        columns += ["peak MiB", "peak ratio"]
        rows = [[*row, *_peaks(memory[row[0]], memory[base])] for row in rows]
    return markdown.pipe_table(columns, rows)


def _peaks(peak: int, base: int) -> list[str]:
    return [f"{peak / 2**20:.0f}", f"{peak / max(base, 1):.2f}"]


def _medians(costs: list[Cost]) -> list[str]:
    wall, cpu, system, faults = map(median, zip(*map(astuple, costs), strict=True))
    return [f"{wall:.3f}", f"{cpu:.3f}", f"{system:.3f}", f"{faults:.0f}"]


def _ratios(costs: Rounds, name: str, base: str) -> list[str]:
    return [f"{ratio(costs, name, base, field):.2f}" for field in ("wall", "cpu")]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of all benchmarks: -device, --threads, --rounds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds A B A B ...; medians are reported"
    )
    return parser
