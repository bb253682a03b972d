"""The plan: spacing, intensities, crop and cases of one pretraining collection, as `plan.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from nnssl.data.hu_map import hu_policy
from nnssl.files import fingerprint, read_json, write_json
from nnssl.host_memory import garbage_collection_paused
from nnssl.hu import HUPolicy
from nnssl.types import BODY_HU, Shape, Spacing

FORMAT_VERSION = 1
PLAN = "plan.json"  # its file, in the folder of a collection
SANE_SPACING = (0.5, 5.0)  # mm: finer is more noise than anatomy, coarser loses the organs
CROPS = (96, 64, 48, 32)  # voxels per axis: SMIT's own size, then what smaller scans can hold
MOST = 0.7  # of the median scan along an axis, for a crop


@dataclass(frozen=True)
class Case:
    """One scan: where it came from and its shape and spacing (z, y, x) before resampling."""

    id: str
    source: str
    series: str
    shape: Shape
    spacing: Spacing

    @classmethod
    def from_dict(cls, content: dict) -> Case:
        lists = {name: tuple(content[name]) for name in ("shape", "spacing")}
        return cls(**{**content, **lists})


@dataclass(frozen=True)
class Plan:
    """The preprocessing of every scan, and the list of scans. Spacing in mm, crop in voxels, (z, y,
    x).

    Cases that are added later change neither its fingerprint nor its other fields, so stored files
    stay valid. Without a HU policy (MRI) each scan is normalised by its own mean and std, as
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
        """A whole scan [Z Y X], normalised as nnU-Net does before resampling, float32."""
        return _by_own_values(voxels) if self.hu is None else self.hu.standardise(voxels)

    def body(self, voxels: np.ndarray, standardised: np.ndarray) -> np.ndarray:
        """bool [Z Y X]: where a whole scan, which `standardise` has normalised, shows tissue."""
        in_hu = self.hu is not None
        return is_body(voxels if in_hu else standardised, in_hu)

    def bend(self, resampled: np.ndarray) -> np.ndarray:
        """What `standardise` gave, resampled since, to network input.

        After the resampling, because at fine-tuning nnU-Net resamples and then our network maps.
        """
        return resampled if self.hu is None else self.hu.bend(resampled)

    @property
    def padding(self) -> float:
        """The value of voxels outside a scan: air, and without HU the scan's mean, as in nnU-Net's
        padding.
        """
        return float(self.hu.normalise(np.float32(self.hu.low))) if self.hu is not None else 0.0

    def _content(self) -> dict:
        """The fields that determine the stored files: without the cases that were added, and the
        pattern.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["cases"] = [vars(case) for case in self._at_first]
        content["hu"] = self.hu and self.hu.to_dict()
        del content["fingerprint"], content["added"], content["pattern"]
        return content

    @property
    def _at_first(self) -> tuple[Case, ...]:
        """The cases that the plan was made of."""
        return self.cases[: len(self.cases) - self.added]

    def without_cases(self) -> Plan:
        """The plan as sent to a worker: without its cases, which may be ten thousand."""
        return Plan(self.name, self.spacing, self.hu, self.crop, ())

    def with_added(self, cases: Sequence[Case]) -> Plan:
        return replace(self, cases=(*self.cases, *cases), added=self.added + len(cases))

    def save(self, path: Path | str) -> None:
        content = self._content()
        if self.added:
            content["added"] = [vars(case) for case in self.cases[-self.added :]]
        if self.pattern:
            content["pattern"] = list(self.pattern)
        write_json(path, {**content, "fingerprint": self.fingerprint})

    @classmethod
    @garbage_collection_paused()
    def load(cls, path: Path | str) -> Plan:
        """Raises ValueError for a file of another version, or one that was edited."""
        try:
            return cls._checked(path, read_json(path))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a valid plan ({type(error).__name__}: {error}); restore an older "
                "copy, or delete it: the same -i or -d creates it again"
            ) from error

    @classmethod
    def _checked(cls, path: Path | str, content: dict) -> Plan:
        _check_version(path, content.get("format_version"))
        plan = cls._from_dict(content)
        if plan.fingerprint != content["fingerprint"]:
            raise ValueError(
                f"{path} was edited after it was written (fingerprint {content['fingerprint']}, "
                f"content {plan.fingerprint}); delete its folder, or use --spacing and --crop "
                "with a new --name"
            )
        return plan

    @classmethod
    def _from_dict(cls, content: dict) -> Plan:
        added = content.get("added", [])
        return cls(
            name=content["name"],
            spacing=tuple(content["spacing"]),
            hu=HUPolicy.from_dict(content["hu"]) if content["hu"] else None,
            crop=tuple(content["crop"]),
            cases=tuple(Case.from_dict(case) for case in [*content["cases"], *added]),
            added=len(added),
            pattern=tuple(content.get("pattern", [])),
        )


def is_body(values: np.ndarray, in_hu: bool) -> np.ndarray:
    """Which voxels are no air, by their HU. By values without HU, which their own mean and std
    have normalised: those above the mean.
    """
    return values > (BODY_HU if in_hu else 0.0)


def _check_version(path: Path | str, version: object) -> None:
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has plan format {version}, this version of nnssl reads {FORMAT_VERSION}; "
            "delete its folder and run nnssl_pretrain again"
        )


@garbage_collection_paused()
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


def _by_own_values(voxels: np.ndarray) -> np.ndarray:
    """nnU-Net's ZScoreNormalization."""
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    within, *_ = crop_to_nonzero(voxels[None])
    # In double precision: in single, the square of a large fill value is infinite.
    mean, std = (float(f(dtype=np.float64)) for f in (within.mean, within.std))
    return (voxels - np.float32(mean)) / np.float32(max(std, 1e-8))


def case_of(scan: _Scan) -> Case:
    """The case that a line of the survey describes."""
    name = case_id(scan.path, scan.series)
    return Case(name, scan.path, scan.series, tuple(scan.shape), tuple(scan.spacing))


def check_spacing(spacing: Spacing) -> Spacing:
    if len(spacing) != 3 or not all(0.05 <= s <= 15 for s in spacing):
        raise ValueError(
            f"spacing must be three numbers from 0.05 to 15 mm (z y x), got {tuple(spacing)}"
        )
    return tuple(map(float, spacing))


def check_crop(crop: Shape) -> Shape:
    if not _is_crop(crop):
        raise ValueError(
            f"crop must be three positive multiples of 16 (z y x), got {tuple(crop)}; try 96 96 96"
        )
    return tuple(map(int, crop))


def _is_crop(crop: Shape) -> bool:
    return len(crop) == 3 and all(c > 0 and c % 16 == 0 for c in crop)


def median_spacing(spacings: Sequence[Spacing]) -> Spacing:
    """The median of each axis in mm, within SANE_SPACING."""
    median = np.median(np.array(spacings), axis=0).clip(*SANE_SPACING)
    return tuple(round(float(mm), 4) for mm in median)


def resampled_shape(shape: Shape, spacing: Spacing, new_spacing: Spacing) -> Shape:
    """nnU-Net's rule for the shape after resampling (compute_new_shape), but one voxel at least."""
    sizes = zip(spacing, new_spacing, shape, strict=True)
    return tuple(max(1, round(s / n * k)) for s, n, k in sizes)


def default_crop(shapes: Sequence[Shape]) -> Shape:
    """For each axis the largest of CROPS within MOST of the median shape, or the smallest of them.

    A crop as large as the scan shows the same in every view, and much air.
    """
    return tuple(
        next((c for c in CROPS if c <= MOST * m), CROPS[-1])
        for m in np.median(np.array(shapes), axis=0)
    )


def case_id(path: str, series: str = "") -> str:
    """A safe file name: what is readable of the scan's name, and a hash of its whole path and
    series.

    The same scan has the same id in every run; scans of the same name in different folders do not.
    """
    return f"{_readable(Path(path).name) or 'scan'}_{fingerprint([path, series])}"


def _readable(file_name: str) -> str:
    """Its letters and digits without the ending, 40 at most."""
    stem = re.sub(r"\.(nii\.gz|nii|nrrd|nhdr|mha|mhd)$", "", file_name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:40]
