"""What HU policies make of the tissues of real scans: how much of the network's input each gets.

    python -m nnssl.bench.intensities SCAN.nii.gz ...

Tissues are told apart by HU alone, so that edges of one count as another. Each scan weighs the
same. All numbers but the last column are in units of the network's input, of which a body has a std
of 1.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np

from nnssl.data.plan import hu_policy
from nnssl.data.scans import Found, read_scan
from nnssl.data.survey import body_histogram
from nnssl.types import BODY_HU, HUPolicy

RANGE = (-1024, 3071)  # HU of the first and the last bin
TISSUES = {"lung": (-950, -600), "fat": (-150, -50), "soft tissue": (-20, 120), "bone": (200, 1500)}
STEPS = {"lung": -750, "soft tissue": 40, "bone": 600}  # HU in whose middle a step of STEP lies
STEP = 40.0  # HU: parotid against muscle
PERCENTILES = (0.005, 0.995)  # of the body, as nnU-Net clips
SOFT = (-175.0, 250.0)  # what SMIT's authors clip to


def histogram(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of a scan's voxels at each whole HU of RANGE, and its `body_histogram`."""
    voxels, _ = read_scan(Found(str(path), ""))
    counts = np.bincount(
        np.rint(voxels).clip(*RANGE).astype(np.int64).ravel() - RANGE[0],
        minlength=np.ptp(RANGE) + 1,
    )
    return counts / counts.sum(), body_histogram(voxels)


def policies(bodies: list[np.ndarray]) -> dict[str, HUPolicy]:
    """The maps that are compared, each derived from the same scans."""
    pooled = functools.reduce(np.add, (body / body.sum() for body in bodies))
    low, high = (BODY_HU + np.searchsorted(pooled.cumsum() / pooled.sum(), q) for q in PERCENTILES)
    linear = {f"linear [{low:g}, {high:g}]": (low, high) for low, high in ((low, high), SOFT)}
    return {name: hu_policy(bodies, clip) for name, clip in linear.items()} | {
        "piecewise": hu_policy(bodies)
    }


def row(policy: HUPolicy, weights: np.ndarray) -> list[float]:
    """Std of each tissue (NaN where there is none), STEP in each of STEPS, the fraction clipped.

    The fraction is of body and lung voxels.
    """
    hu = np.arange(RANGE[0], RANGE[1] + 1.0)
    values = policy.normalise(hu)
    spreads = []
    for low, high in TISSUES.values():
        inside = (low <= hu) & (hu <= high)
        spreads.append(_std(values[inside], weights[inside]) if weights[inside].any() else np.nan)
    steps = [
        np.ptp(policy.normalise(np.array([at - STEP / 2, at + STEP / 2]))) for at in STEPS.values()
    ]
    tissue = hu >= TISSUES["lung"][0]
    clipped = tissue & ((hu < policy.low) | (hu > policy.high))
    return [*spreads, *steps, weights[clipped].sum() / weights[tissue].sum()]


def _std(values: np.ndarray, weights: np.ndarray) -> float:
    return float(
        np.sqrt(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights))
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", nargs="+", type=Path, help="files of CT scans")
    scans, bodies = zip(*map(histogram, parser.parse_args(argv).scans), strict=True)
    weights = functools.reduce(np.add, scans)
    print(f"{len(scans)} scans\n")
    heads = [
        *(f"std of {name}" for name in TISSUES),
        *(f"{STEP:g} HU in {name}" for name in STEPS),
        "clipped",
    ]
    print(f"| policy | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for name, policy in policies(list(bodies)).items():
        *numbers, clipped = row(policy, weights)
        print(
            f"| {name} | {' | '.join(f'{number:.2f}' for number in numbers)} | {100 * clipped:.1f} "
            "% |"
        )


if __name__ == "__main__":
    main()
