"""What of a row of the log a checkpoint's header holds."""

from __future__ import annotations

import math

# of the machine: with them the same training would not give the same bytes
TIMINGS = ("samples_per_second", "data_wait", "of_peak")


def header_metrics(row: dict) -> dict:
    """`row` without its timings, and without numbers that are not finite, which JSON cannot hold:
    a run continues though one of its monitors has overflowed.
    """
    return {
        name: value
        for name, value in row.items()
        if name not in TIMINGS and not (isinstance(value, float) and not math.isfinite(value))
    }
