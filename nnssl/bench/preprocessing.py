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

from nnssl.data.plan import Case, Plan
from nnssl.data.prepare import prepare
from nnssl.data.preprocess import preprocess_case
from nnssl.data.workers import Failed, parallel_map
from nnssl.phantoms import write_folder

GOAL = 1.7


def timed(case: Case, plan: Plan, folder: Path) -> tuple[int, float]:
    """The worker's process id and the CPU seconds that the case took."""
    start = time.process_time()
    preprocess_case(case, plan, plan.fingerprint, folder)
    return os.getpid(), time.process_time() - start


def seconds(plan: Plan, num_processes: int) -> tuple[float, float]:
    """Wall seconds for all cases, and CPU seconds of the busiest worker."""
    busy: defaultdict[int, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for case, result in parallel_map(
            partial(timed, plan=plan, folder=Path(folder)), plan.cases, num_processes, "bench"
        ):
            if isinstance(result, Failed):
                raise RuntimeError(f"{case.source}: {result.reason}")
            busy[result[0]] += result[1]
        return time.perf_counter() - start, max(busy.values())


def main(argv: list[str] | None = None) -> None:
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
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        write_folder(raw, range(options.scans), tuple(options.shape))
        how = {
            "spacing": tuple(options.spacing),
            "crop": (64, 64, 64),
            "num_processes": options.workers,
        }
        plan = prepare("bench", Path(folder, "out"), [raw], **how)
        rounds = [(seconds(plan, 1), seconds(plan, options.workers)) for _ in range(options.rounds)]
    print(
        f"{options.scans} phantoms of {tuple(options.shape)} voxels to {tuple(options.spacing)} mm"
    )
    for place, word in enumerate(("wall time", "CPU time of the busiest worker")):
        one, many = (
            median(costs[place] for costs in column) for column in zip(*rounds, strict=True)
        )
        ratio = median(few[place] / more[place] for few, more in rounds)
        print(
            f"{word}: 1 worker {one:.1f} s, {options.workers} workers {many:.1f} s, {ratio:.2f} "
            "times as fast"
        )
    print(f"goal: {GOAL} times with 2 workers")


if __name__ == "__main__":
    main()
