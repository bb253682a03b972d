"""Preprocessing with two workers against one: survey, plan and preprocessing of the same phantoms, side by side.

Run with `python -m nnssl.bench.preprocessing`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from nnssl.data.phantoms import write_folder
from nnssl.data.prepare import prepare

GOAL = 1.7


def seconds(raw: Path, num_processes: int, spacing: tuple[float, float, float]) -> float:
    """Wall time from raw scans to crops in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as out:
        start = time.perf_counter()
        prepare("bench", out, [raw], spacing=spacing, crop=(64, 64, 64), num_processes=num_processes)
        return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 96, 112), metavar=("Z", "Y", "X"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 2.5, 2.5), metavar=("Z", "Y", "X"), help="mm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="one and many workers in turn; medians are reported")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        write_folder(raw, range(options.scans), tuple(options.shape))
        counts = (1, options.workers)
        seconds(raw, 1, tuple(options.spacing))  # nnU-Net's imports, which a run pays once, are not what is asked
        rounds = [[seconds(raw, count, tuple(options.spacing)) for count in counts] for _ in range(options.rounds)]
    one, many = (median(times) for times in zip(*rounds, strict=True))
    ratio = median(a / b for a, b in rounds)
    print(f"{options.scans} phantoms of {tuple(options.shape)} to {tuple(options.spacing)} mm")
    print(f"1 worker {one:.1f} s, {options.workers} workers {many:.1f} s: {ratio:.2f} times as fast (goal {GOAL})")


if __name__ == "__main__":
    main()
