"""The cost of a pretraining, from the rows of its log."""

from __future__ import annotations

from itertools import pairwise
from statistics import median


def seconds(rows: list[dict], batch_size: int) -> float:
    """Seconds of training: pauses between a stop and `--c` do not count."""
    total = 0.0
    for before, row in pairwise([{"step": 0}, *rows]):
        total += (row["step"] - before["step"]) * batch_size / row["samples_per_second"]
    return total


def middle(rows: list[dict], key: str) -> float | None:
    """The median of a column of the log; None where it has none."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None
