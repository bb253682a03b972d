"""The plan: spacing, intensities, crop and cases of one pretraining collection, as `plan.json`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from nnssl.files import fingerprint, read_json, write_json
from nnssl.memory import uncollected
from nnssl.types import HUPolicy, Shape, Spacing

FORMAT_VERSION = 1
SANE_SPACING = (0.5, 5.0)  # mm: finer is more noise than anatomy, coarser loses the organs
CROPS = (96, 64, 48, 32)  # voxels per axis: SMIT's own size, then what smaller scans can hold
MOST = 0.7  # of the median scan along an axis, for a crop
WIDEST = (-1000.0, 3000.0)  # HU
# HU of the map's interior knots. Between them: air and lung; lung's edge and skin; fat; organs;
# organs with contrast agent; bone; dense bone and metal.
KNOTS = (-500.0, -150.0, 0.0, 100.0, 250.0, 1000.0)
# fraction of the output that the pieces share evenly; the rest follows the body's voxels
EVEN = 0.75


@dataclass(frozen=True)
class Case:
    """One scan: where it came from and its shape and spacing (z, y, x) before resampling."""

    id: str
    source: str
    series: str
    shape: Shape
    spacing: Spacing


@dataclass(frozen=True)
class Plan:
    """What preprocessing does to every scan, and which scans there are. Spacing in mm, crop in
    voxels, (z, y, x).

    Cases that are added later change nothing of it, its fingerprint neither: what was stored by it
    stays right. Without a HU policy (MRI) each scan is normalised by its own mean and std, as
    nnU-Net's ZScoreNormalization does.
    """

    name: str
    spacing: Spacing
    hu: HUPolicy | None
    crop: Shape
    cases: tuple[Case, ...]
    format_version: int = FORMAT_VERSION
    added: int = 0  # of the cases, at their end, that came after the plan was made
    pattern: tuple[str, ...] = ()  # of the files that are scans (`patterns`)
    fingerprint: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_spacing(self.spacing)
        check_crop(self.crop)
        object.__setattr__(self, "fingerprint", fingerprint(self._content()))

    def standardise(self, voxels: np.ndarray) -> np.ndarray:
        """A whole scan [Z Y X] as nnU-Net normalises one before it resamples, float32."""
        if self.hu is not None:
            return self.hu.standardise(voxels)
        from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

        within, *_ = crop_to_nonzero(voxels[None])
        return (voxels - within.mean()) / max(within.std(), 1e-8)

    def bend(self, resampled: np.ndarray) -> np.ndarray:
        """What `standardise` gave, resampled since, to network input.

        After the resampling, because at fine-tuning nnU-Net resamples and then our network maps.
        """
        return resampled if self.hu is None else self.hu.bend(resampled)

    @property
    def padding(self) -> float:
        """What stands for voxels outside of a scan: air, and without HU the scan's mean, as nnU-Net
        pads.
        """
        return float(self.hu.normalise(np.float32(self.hu.low))) if self.hu is not None else 0.0

    def _content(self) -> dict:
        """What decides about what is stored: without the cases that were added, and the pattern."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["cases"] = [vars(case) for case in self.cases[: len(self.cases) - self.added]]
        content["hu"] = self.hu and self.hu.to_dict()
        del content["fingerprint"], content["added"], content["pattern"]
        return content

    def with_added(self, cases: Sequence[Case]) -> Plan:
        return replace(self, cases=(*self.cases, *cases), added=self.added + len(cases))

    def save(self, path: Path | str) -> None:
        added = [vars(case) for case in self.cases[len(self.cases) - self.added :]]
        write_json(
            path,
            {
                **self._content(),
                **({"added": added} if added else {}),
                **({"pattern": list(self.pattern)} if self.pattern else {}),
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    @uncollected()
    def load(cls, path: Path | str) -> Plan:
        """Raises ValueError for a file of another version, or one that was changed by hand."""
        try:
            return cls._of(path, read_json(path))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a plan, or a damaged one ({type(error).__name__}: {error}); put an "
                "older copy back, or delete it: with the same -i or -d it is made again"
            ) from error

    @classmethod
    def _of(cls, path: Path | str, content: dict) -> Plan:
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has plan format {version}, this program reads {FORMAT_VERSION}; delete "
                "its folder and run nnssl_pretrain again"
            )
        plan = cls(
            name=content["name"],
            spacing=tuple(content["spacing"]),
            hu=HUPolicy.from_dict(content["hu"]) if content["hu"] else None,
            crop=tuple(content["crop"]),
            cases=tuple(
                Case(**{**case, "shape": tuple(case["shape"]), "spacing": tuple(case["spacing"])})
                for case in [*content["cases"], *content.get("added", [])]
            ),
            added=len(content.get("added", [])),
            pattern=tuple(content.get("pattern", [])),
        )
        if plan.fingerprint != content["fingerprint"]:
            raise ValueError(
                f"{path} was changed after it was written (fingerprint {content['fingerprint']}, "
                f"content {plan.fingerprint}); delete its folder, or use --spacing and --crop with "
                "a new name"
            )
        return plan


@uncollected()
def make_plan(
    name: str,
    scans: Sequence,
    histograms: Iterable[np.ndarray] | None,
    spacing: Spacing | None = None,
    crop: Shape | None = None,
    clip: tuple[float, float] | None = None,
) -> Plan:
    """Plan from the kept lines of the survey (`path`, `series`, `shape`, `spacing`) and their body
    histograms.

    One histogram is in memory at a time; without any there is no HU policy. `spacing` (mm), `crop`
    (voxels) and `clip` (HU) override what would be derived.
    """
    if not scans:
        raise ValueError("a plan needs at least one scan")
    scans = sorted(scans, key=lambda scan: (scan.path, scan.series))
    spacing = check_spacing(spacing or median_spacing([scan.spacing for scan in scans]))
    shapes = [resampled_shape(scan.shape, scan.spacing, spacing) for scan in scans]
    cases = tuple(map(case_of, scans))
    hu = None if histograms is None else hu_policy(histograms, clip)
    return Plan(name, spacing, hu, check_crop(crop or default_crop(shapes)), cases)


class _Scan(Protocol):
    """A line of the survey (`nnssl.data.survey.ScanReport`)."""

    @property
    def path(self) -> str: ...
    @property
    def series(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def spacing(self) -> Spacing: ...


def case_of(scan: _Scan) -> Case:
    """Of a line of the survey."""
    return Case(
        case_id(scan.path, scan.series),
        scan.path,
        scan.series,
        tuple(scan.shape),
        tuple(scan.spacing),
    )


def check_spacing(spacing: Spacing) -> Spacing:
    if len(spacing) != 3 or not all(0.05 <= s <= 15 for s in spacing):
        raise ValueError(
            f"spacing must be three numbers from 0.05 to 15 mm (z y x), got {tuple(spacing)}"
        )
    return tuple(float(s) for s in spacing)


def check_crop(crop: Shape) -> Shape:
    if len(crop) != 3 or not all(c > 0 and c % 16 == 0 for c in crop):
        raise ValueError(
            f"crop must be three positive multiples of 16 (z y x), got {tuple(crop)}; try 96 96 96"
        )
    return tuple(int(c) for c in crop)


def check_clip(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(end) for end in clip)
    if not WIDEST[0] <= low < high <= WIDEST[1]:
        raise ValueError(
            f"the HU range must rise and lie within {WIDEST[0]:g} to {WIDEST[1]:g}, got {low:g} "
            f"{high:g}"
        )
    return low, high


def median_spacing(spacings: Sequence[Spacing]) -> Spacing:
    """The median of each axis in mm, within SANE_SPACING."""
    return tuple(
        round(float(s), 4) for s in np.median(np.array(spacings), axis=0).clip(*SANE_SPACING)
    )


def resampled_shape(shape: Shape, spacing: Spacing, new_spacing: Spacing) -> Shape:
    """nnU-Net's rule for the shape after resampling (compute_new_shape)."""
    return tuple(round(s / n * k) for s, n, k in zip(spacing, new_spacing, shape, strict=True))


def default_crop(shapes: Sequence[Shape]) -> Shape:
    """For each axis the largest of CROPS within MOST of the median shape, or the smallest of them.

    A crop as large as the scan shows the same in every view, and much air.
    """
    return tuple(
        next((c for c in CROPS if c <= MOST * m), CROPS[-1])
        for m in np.median(np.array(shapes), axis=0)
    )


def hu_policy(
    histograms: Iterable[np.ndarray], clip: tuple[float, float] | None = None
) -> HUPolicy:
    """Network input of mean 0 and std 1 over body voxels, each scan weighing the same.

    The map rises piecewise between fixed HU (KNOTS). A piece's part of the output is a mixture of
    an even part and of its fraction of the body's voxels: a tempered histogram equalisation. So
    soft tissue, a tenth of the range in HU, gets half of the output, while air, lung, bone and
    metal keep parts of their own. Even parts alone would not know the collection; the histogram
    alone would leave nothing to lung, which is below BODY_HU.

    `clip` (HU) asks for the plain linear map of that range instead.
    `histograms`: counts at each whole HU from BODY_HU upwards (survey.body_histogram).
    """
    fractions = (histogram / histogram.sum() for histogram in histograms)
    pooled = functools.reduce(np.add, fractions)
    pooled = pooled / pooled.sum()
    hu = np.arange(len(pooled)) + WIDEST[1] - (len(pooled) - 1)
    low, high = check_clip(clip) if clip else WIDEST
    interior = () if clip else tuple(zip(KNOTS, _levels(hu, pooled), strict=True))
    values = np.interp(hu, *np.array([(low, low), *interior, (high, high)]).T)
    mean = float((pooled * values).sum())
    std = float(np.sqrt((pooled * (values - mean) ** 2).sum()))
    return HUPolicy(low, high, round(mean, 4), round(max(std, 1.0), 4), interior)


def _levels(hu: np.ndarray, pooled: np.ndarray) -> list[float]:
    """Where KNOTS come to lie within WIDEST; `pooled`: fraction of body voxels at each of `hu`."""
    body = np.histogram(hu, bins=(WIDEST[0], *KNOTS, WIDEST[1]), weights=pooled)[0]
    parts = EVEN / len(body) + (1 - EVEN) * body
    return [
        round(float(WIDEST[0] + (WIDEST[1] - WIDEST[0]) * part), 4) for part in parts.cumsum()[:-1]
    ]


def case_id(path: str, series: str = "") -> str:
    """A safe file name: what is readable of the scan's name, and a hash of its whole path and
    series.

    The same scan has the same id in every run; scans of the same name in different folders do not.
    """
    stem = re.sub(r"\.(nii\.gz|nii|nrrd|nhdr|mha|mhd)$", "", Path(path).name, flags=re.IGNORECASE)
    readable = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:40]
    return f"{readable or 'scan'}_{fingerprint([path, series])}"
