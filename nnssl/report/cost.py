"""What a pretraining took, by the rows of its log."""

from __future__ import annotations

from statistics import median


def seconds(rows: list[dict], batch_size: int) -> float:
    """Of training: pauses between a stop and `--c` do not count."""
    before, total = 0, 0.0
    for row in rows:
        total += (row["step"] - before) * batch_size / row["samples_per_second"]
        before = row["step"]
    return total


def middle(rows: list[dict], key: str) -> float | None:
    """The median of a column of the log; None where it has none."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None
