"""Costs measured side by side: A B A B ... in one process, medians of the rounds, ratios round by
round.

Wall time suffers from neighbours on a shared machine; CPU time (user + system, all threads) much
less. Page faults tell how much memory the system had to hand out again.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Cost:
    """One call: wall and CPU seconds (user + system; `system` also alone) and minor page faults."""

    wall: float
    cpu: float
    system: float
    faults: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(self._row(), other._row(), strict=True)))

    def _row(self) -> tuple[float, ...]:
        return self.wall, self.cpu, self.system, self.faults


Rounds = dict[str, list[Cost]]


def _now(device: torch.device) -> Cost:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Cost(time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime, used.ru_minflt)


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
    for _ in range(rounds):
        for name, call in calls.items():
            start = _now(device)
            call()
            costs[name].append(_now(device) - start)
    return costs


def ratio(costs: Rounds, name: str, base: str, what: str = "wall") -> float:
    """The median over rounds of `name`'s cost over `base`'s in the same round; `what` is a field of
    `Cost`.
    """
    pairs = zip(costs[name], costs[base], strict=True)
    return median(getattr(a, what) / max(getattr(b, what), 1e-9) for a, b in pairs)


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes by which tensors alive during `call` exceed those alive before it, at the highest.

    Counted at PyTorch's allocator, so that neither the C library's habits nor earlier calls have a
    part in it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    alive = peak = 0
    for event in events(profile):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def events(profile: torch.profiler.profile) -> list:
    """What a profile has seen, once it is over."""
    seen = profile.profiler and profile.profiler.kineto_results
    if seen is None:
        raise RuntimeError("the profiler has seen nothing")
    return seen.events()


def table(costs: Rounds, base: str, memory: Mapping[str, int] | None = None) -> str:
    """A Markdown table of medians, and of ratios to `base`; `memory` in bytes by the same names."""
    head = ["", "wall s", "CPU s", "system s", "page faults", "wall ratio", "CPU ratio"]
    rows = []
    for name, own in costs.items():
        middle = [
            median(getattr(cost, field) for cost in own)
            for field in ("wall", "cpu", "system", "faults")
        ]
        rows.append(
            [name, *(f"{value:.3f}" for value in middle[:3]), f"{middle[3]:.0f}"]
            + [f"{ratio(costs, name, base, what):.2f}" for what in ("wall", "cpu")]
        )
        if memory is not None:
            rows[-1] += [
                f"{memory[name] / 2**20:.0f}",
                f"{memory[name] / max(memory[base], 1):.2f}",
            ]
    if memory is not None:
        head += ["peak MiB", "peak ratio"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share: -device, --threads, --rounds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds A B A B ...; medians are reported"
    )
    return parser
