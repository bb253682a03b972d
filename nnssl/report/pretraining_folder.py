"""The results folder of a pretraining, as its page needs it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnssl import checkpoint, files
from nnssl.data.plan import PLAN
from nnssl.report import collection, cost
from nnssl.report.collection import Collection
from nnssl.train.log import LOG, duration
from nnssl.train.manifest import sittings_in
from nnssl.train.pictures import is_finite
from nnssl.train.run import FINAL, LATEST
from nnssl.types import MANIFEST, PREPROCESSED

PLACED = ("step", "samples_per_second")  # of each row of the log


@dataclass(frozen=True)
class Pretraining:
    """The results folder of a run.

    rows:      of its log.
    headers:   of its final and its latest checkpoint, of those that are there, by the file's name.
    sittings:  of its manifest; [] where a version wrote none, None where it cannot be read.
    """

    folder: Path
    rows: list[dict]
    headers: dict[str, dict]
    sittings: list[dict] | None

    @classmethod
    def read(cls, folder: Path) -> Pretraining:
        """Raises ValueError for a damaged log or checkpoint."""
        manifest = folder / MANIFEST
        sittings = sittings_in(manifest) if manifest.is_file() else []
        return cls(folder, _rows(folder / LOG), _headers(folder), sittings)

    @cached_property
    def header(self) -> dict:
        """Of the later checkpoint; {} before the first one. A run that was finished and then
        extended is beyond its final one.
        """
        return max(self.headers.values(), key=_step, default={})

    @property
    def name(self) -> str:
        return f"{self.header.get('plan', {}).get('name', '')} {self.folder.resolve().name}".strip()

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def batch_size(self) -> int:
        return self.header["run"]["batch_size"]

    @property
    def duration(self) -> str:
        """What the training took, in words."""
        return duration(cost.seconds(self.rows, self.batch_size))

    @property
    def is_finished(self) -> bool:
        """Whether there is a final checkpoint, and none is later."""
        return FINAL in self.headers and _step(self.headers[FINAL]) == _step(self.header)

    def collection(self) -> tuple[Collection | None, list[str]]:
        """The scans it was trained on, where they are still below $nnUNet_preprocessed; and a
        warning where they cannot be read.
        """
        plan = self.header.get("plan", {})
        folder = _preprocessed(plan.get("name"))
        try:
            found = Collection.read(folder) if folder else None
        except (OSError, ValueError):  # its text names folders, which stay out of the page
            files_of = f"{collection.REPORT} or {PLAN} of the collection {plan['name']}"
            return None, [f"{files_of} cannot be read: the scans left out are not shown"]
        if found is None or found.plan is None or found.plan.fingerprint != plan["fingerprint"]:
            return None, []
        return found, []


def _step(header: dict) -> int:
    return header.get("step", 0)


def _rows(path: Path) -> list[dict]:
    """Of the log. Raises ValueError where one lacks what places it in the training."""
    rows = files.read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        if not all(is_finite(row.get(name)) for name in PLACED):
            raise ValueError(
                f"{path}, row {number} is damaged: it needs {' and '.join(PLACED)} as numbers. "
                "Restore an older copy of the file, or delete that line"
            )
    return rows


def _headers(folder: Path) -> dict[str, dict]:
    paths = {name: folder / name for name in (FINAL, LATEST)}
    return {name: checkpoint.read(p)["header"] for name, p in paths.items() if p.exists()}


def _preprocessed(name: str | None) -> Path | None:
    """The folder of a collection; None where it is not there, or not whole."""
    root = os.environ.get(PREPROCESSED)
    if not root or not name:
        return None
    folder = Path(root) / "nnssl" / name
    return folder if _holds_collection(folder) else None


def _holds_collection(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (collection.REPORT, PLAN))
