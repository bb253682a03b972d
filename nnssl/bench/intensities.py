"""What HU policies make of the tissues of real scans: how much of the network's input each gets.

    python -m nnssl.bench.intensities SCAN.nii.gz ...

Tissues are distinguished by HU alone, so that edges of one count as another. Each scan weighs the
same. All numbers but the last column are in units of the network's input, of which a body has a std
of 1.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from nnssl.bench import markdown
from nnssl.bench.command_line import parser_of
from nnssl.data.plan import hu_policy
from nnssl.data.scans import Found, read_scan
from nnssl.data.survey import body_histogram
from nnssl.hu import HUPolicy
from nnssl.types import BODY_HU

RANGE = (-1024, 3071)  # HU of the first and the last bin
HU = np.arange(RANGE[0], RANGE[1] + 1.0)  # of each bin
TISSUES = {"lung": (-950, -600), "fat": (-150, -50), "soft tissue": (-20, 120), "bone": (200, 1500)}
STEPS = {"lung": -750, "soft tissue": 40, "bone": 600}  # HU in whose middle a step of STEP lies
STEP = 40.0  # HU: parotid against muscle
PERCENTILES = (0.005, 0.995)  # of the body, as nnU-Net clips
SOFT = (-175.0, 250.0)  # what SMIT's authors clip to


def histogram(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of a scan's voxels at each whole HU of RANGE, and its `body_histogram`."""
    voxels, _ = read_scan(Found(str(path), ""))
    counts = _hu_counts(voxels)
    return counts / counts.sum(), body_histogram(voxels)


def _hu_counts(voxels: np.ndarray) -> np.ndarray:
    """At each whole HU of RANGE."""
    low, high = RANGE
    bins = np.rint(voxels).clip(low, high).astype(np.int64).ravel() - low
    return np.bincount(bins, minlength=high - low + 1)


def policies(bodies: list[np.ndarray]) -> dict[str, HUPolicy]:
    """The maps that are compared, each derived from the same scans."""
    clips = (_body_percentiles(bodies), SOFT)
    linear = {f"linear [{low:g}, {high:g}]": hu_policy(bodies, (low, high)) for low, high in clips}
    return linear | {"piecewise": hu_policy(bodies)}


def _body_percentiles(bodies: list[np.ndarray]) -> tuple[float, float]:
    """PERCENTILES of the body in HU, each scan weighing the same."""
    pooled = functools.reduce(np.add, (body / body.sum() for body in bodies))
    cumulative = pooled.cumsum() / pooled.sum()
    low, high = (BODY_HU + np.searchsorted(cumulative, q) for q in PERCENTILES)
    return low, high


def row(policy: HUPolicy, weights: np.ndarray) -> list[float]:
    """Std of each tissue (NaN where there is none), STEP in each of STEPS, the fraction clipped.

    The fraction is of body and lung voxels.
    """
    values = policy.normalise(HU)
    stds = [_std(values, weights * _within(tissue)) for tissue in TISSUES.values()]
    steps = [_normalised_step(policy, hu) for hu in STEPS.values()]
    return [*stds, *steps, _clipped(policy, weights)]


def _normalised_step(policy: HUPolicy, middle: float) -> float:
    """What becomes of a step of STEP HU."""
    return np.ptp(policy.normalise(middle + np.array([-0.5, 0.5]) * STEP))


def _clipped(policy: HUPolicy, weights: np.ndarray) -> float:
    """The fraction of body and lung voxels beyond the policy's ends."""
    tissue = TISSUES["lung"][0] <= HU
    clipped = tissue & ~_within((policy.low, policy.high))
    return weights[clipped].sum() / weights[tissue].sum()


def _within(bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return (low <= HU) & (high >= HU)


def _std(values: np.ndarray, weights: np.ndarray) -> float:
    """The std of weighted values; NaN where no weight is left."""
    if not weights.any():
        return np.nan
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("scans", nargs="+", type=Path, help="files of CT scans")
    scans, bodies = zip(*map(histogram, parser.parse_args(argv).scans), strict=True)
    weights = functools.reduce(np.add, scans)
    rows = (
        _policy_cells(name, row(policy, weights)) for name, policy in policies([*bodies]).items()
    )
    print(f"{len(scans)} scans\n")
    print(markdown.pipe_table(_columns(), rows))


def _columns() -> list[str]:
    stds = (f"std of {name}" for name in TISSUES)
    steps = (f"{STEP:g} HU in {name}" for name in STEPS)
    return ["policy", *stds, *steps, "clipped"]


def _policy_cells(name: str, numbers: list[float]) -> list[str]:
    *values, clipped = numbers
    return [name, *(f"{value:.2f}" for value in values), f"{100 * clipped:.1f} %"]


if __name__ == "__main__":
    main()
