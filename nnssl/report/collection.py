"""A collection of scans as `nnssl_pretrain --only-prepare` leaves it: report, plan and states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.data.crops import VOXELS
from nnssl.data.plan import PLAN, Case, Plan, case_id
from nnssl.data.survey_lines import body_histograms
from nnssl.data.survey_report import ScanReport
from nnssl.report import left_out
from nnssl.report.charts import STEP

REPORT = "report.json"
NEEDED = {"path", "series", "kept", "reason", "shape", "orientation", "note"}  # of a line


def _failure_reason(case: Case, path: Path) -> str:
    """Its reason, without the scan's name and folders."""
    try:
        reason = str(files.read_json(path)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its note cannot be read"
    return left_out.reason({"path": case.source, "reason": reason})


def _lines_of(path: Path) -> list[dict]:
    """Of report.json. Raises ValueError where it has none."""
    content: object = files.read_json(path)
    lines = content.get("scans") if isinstance(content, dict) else None
    if isinstance(lines, list) and all(map(_is_line, lines)):
        return lines
    raise ValueError(
        f"{path} is damaged: its scans must be a list with {', '.join(sorted(NEEDED))} of each. "
        "The same nnssl_pretrain -i with --only-prepare writes it again"
    )


def _is_line(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= NEEDED


@dataclass(frozen=True)
class Collection:
    """A folder of `nnssl_pretrain --only-prepare`. lines: those of report.json."""

    folder: Path
    lines: list[dict]
    plan: Plan | None

    @classmethod
    def read(cls, folder: Path) -> Collection:
        """Raises ValueError for a report or a plan that is damaged."""
        lines = _lines_of(folder / REPORT)
        path = folder / PLAN
        return cls(folder, lines, Plan.load(path) if path.exists() else None)

    @property
    def in_hu(self) -> bool:
        return self.plan is not None and self.plan.hu is not None

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else self.folder.resolve().name

    @property
    def left_out(self) -> list[dict]:
        return [line for line in self.lines if not line["kept"]]

    @property
    def kept(self) -> list[dict]:
        return [line for line in self.lines if line["kept"]]

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.plan.cases if self.plan else ()

    def line_of(self, case: Case) -> dict:
        """What the survey said of a case; {} for one that the last survey did not see."""
        return self._by_id.get(case.id, {})

    @cached_property
    def _by_id(self) -> dict[str, dict]:
        return {case_id(line["path"], line["series"]): line for line in self.lines}

    def histogram(self, case: Case) -> np.ndarray | None:
        """Body voxels in bins of STEP HU from the survey's HISTOGRAM[0]; None without HU."""
        counts = self._counts_by_hu(case) if self.in_hu else None
        if counts is None:
            return None
        return np.add.reduceat(counts.astype(float), np.arange(0, len(counts), STEP))

    def _counts_by_hu(self, case: Case) -> np.ndarray | None:
        """In bins of 1 HU; None where the survey's cannot be read."""
        line = ScanReport(case.source, case.series, True)
        try:
            return next(body_histograms([line], self.folder))
        except (OSError, ValueError):
            return None

    def state(self, case: Case) -> str:
        """Whether a case is preprocessed: "stored", "not yet", or why it failed."""
        if all((self.folder / f"{case.id}{end}").is_file() for end in (".json", VOXELS)):
            return "stored"
        path = self.folder / f"{case.id}.failed.json"
        return f"failed: {_failure_reason(case, path)}" if path.is_file() else "not yet"
