"""Preprocessing with two workers against one: the same phantoms, in turn, in one run.

Wall time needs as many free cores as workers. Where other work runs beside, the CPU time of the
busiest worker tells what the wall time would be: the ratio of both is printed. Run with `python -m
nnssl.bench.preprocessing`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nnssl.data.plan import Case, Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.preprocess import preprocess_case
from nnssl.data.workers import Failed, parallel_map
from nnssl.phantoms import write_folder

GOAL = 1.7


class Costs(NamedTuple):
    """Seconds of a preprocessing: of the wall clock, and of the CPU in the busiest worker."""

    wall: float
    cpu: float


def timed(case: Case, plan: Plan, folder: Path) -> tuple[int, float]:
    """The worker's process id and the CPU seconds that the case took."""
    start = time.process_time()
    preprocess_case(case, plan, plan.fingerprint, folder)
    return os.getpid(), time.process_time() - start


def costs(plan: Plan, num_processes: int) -> Costs:
    """What preprocessing all cases costs with so many workers."""
    busy: defaultdict[int, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        preprocess = partial(timed, plan=plan, folder=Path(folder))
        start = time.perf_counter()
        for case, result in parallel_map(preprocess, plan.cases, num_processes, "bench"):
            worker, seconds = _done(case, result)
            busy[worker] += seconds
        return Costs(time.perf_counter() - start, max(busy.values()))


def _done(case: Case, result: tuple[int, float] | Failed) -> tuple[int, float]:
    """Raises RuntimeError for a failed case."""
    if isinstance(result, Failed):
        raise RuntimeError(f"{case.source}: {result.reason}")
    return result


def parse_worker_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(64, 96, 112), metavar=("Z", "Y", "X")
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(2.5, 2.5, 2.5),
        metavar=("Z", "Y", "X"),
        help="mm",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=3, help="one and many workers in turn; medians are reported"
    )
    return parser.parse_args(argv)


def measured(args: argparse.Namespace, folder: Path) -> list[tuple[Costs, Costs]]:
    """The costs of every round: with one worker, and with many."""
    raw, spacing = folder / "raw", tuple(args.spacing)
    write_folder(raw, range(args.scans), tuple(args.shape))
    plan = prepare(
        PrepareRequest(
            "bench",
            folder / "out",
            [raw],
            spacing=spacing,
            crop=(64, 64, 64),
            num_processes=args.workers,
        )
    )
    return [(costs(plan, 1), costs(plan, args.workers)) for _ in range(args.rounds)]


def compared(name: str, one: list[float], many: list[float], workers: int) -> str:
    """The medians of the rounds' seconds with one and with many workers, and of their ratios."""
    ratio = median(few / more for few, more in zip(one, many, strict=True))
    return (
        f"{name}: 1 worker {median(one):.1f} s, {workers} workers {median(many):.1f} s, "
        f"{ratio:.2f} times as fast"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_worker_options(argv)
    with tempfile.TemporaryDirectory() as folder:
        rounds = measured(args, Path(folder))
    print(f"{args.scans} phantoms of {tuple(args.shape)} voxels to {tuple(args.spacing)} mm")
    one, many = zip(*rounds, strict=True)
    for field, name in (("wall", "wall time"), ("cpu", "CPU time of the busiest worker")):
        few, more = ([getattr(costs, field) for costs in column] for column in (one, many))
        print(compared(name, few, more, args.workers))
    print(f"goal: {GOAL} times with 2 workers")


if __name__ == "__main__":
    main()
