"""The survey's answers in one file, `surveyed.jsonl`, so that a start need not open one for each
scan.

What each answer says but for its histogram, a line a scan, below a line of what failed. It says
nothing that the files in `survey/` do not say: an answer whose file is gone or has another size is
not taken from here, and neither is that of a scan which has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.done import sizes_in
from nnssl.data.scans import Found
from nnssl.files import atomic, fingerprint
from nnssl.memory import uncollected
from nnssl.types import Shape, Spacing

ANSWERS, INDEX = "survey", "surveyed.jsonl"


@dataclass(frozen=True)
class ScanReport:
    """One line of the report. `histogram`: of the body voxels in HU, one bin a unit, compressed.

    `orientation`: where x, y and z run, as stored. `note`: what reading changed, of a scan that is
    kept.
    """

    path: str
    series: str
    kept: bool
    reason: str = ""
    shape: Shape = ()
    spacing: Spacing = ()
    percentiles: tuple[float, ...] = ()
    histogram: str = ""
    orientation: str = ""
    note: str = ""

    @property
    def found(self) -> Found:
        return Found(self.path, self.series)


def place(scan: Found, folder: Path) -> Path:
    """Where the answer to a scan is kept."""
    return folder / ANSWERS / f"{fingerprint([scan.path, scan.series])}.json"


class Index:
    """The file as it is now: `known` by the scans' `signatures`, and whether the next one says the
    same.
    """

    @uncollected()
    def __init__(self, folder: Path, signatures: Mapping[Found, list]) -> None:
        self.path, self._answers, self._lines = folder / INDEX, folder / ANSWERS, 0
        self.known: dict[Found, ScanReport] = {}
        self._failed: list | None = None
        try:
            with self.path.open(encoding="utf-8") as file:
                self._failed = json.loads(next(file))
                self.known = dict(self._read(file, signatures))
        except (OSError, ValueError, TypeError, StopIteration):  # absent or damaged: not used
            self.known, self._failed = {}, None

    def _read(
        self, file: Iterator[str], signatures: Mapping[Found, list]
    ) -> Iterator[tuple[Found, ScanReport]]:
        there = sizes_in(self._answers) if signatures else {}
        for text in file:
            answer, size, signature, path, series, *verdict, orientation, note = json.loads(text)
            kept, reason, *tuples = verdict
            self._lines += 1
            scan = Found(path, series)
            if signatures.get(scan) == signature and there.get(answer) == size:
                shape, spacing, percentiles = map(tuple, tuples)
                yield (
                    scan,
                    ScanReport(
                        path, series, kept, reason, shape, spacing, percentiles, "",
                        orientation, note,
                    ),
                )  # fmt: skip

    def says(self, lines: Mapping[Found, ScanReport], failed: Mapping[Found, str]) -> bool:
        """Whether it says just this already, so that nothing need be written."""
        same = self._lines == len(self.known) == len(lines) and self.known.keys() == lines.keys()
        return same and self._failed == _rows(failed)

    def keep(
        self,
        lines: Mapping[Found, ScanReport],
        signatures: Mapping[Found, list],
        failed: Mapping[Found, str],
    ) -> None:
        encode, there = json.JSONEncoder().encode, sizes_in(self._answers)
        with atomic(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(encode(_rows(failed)) + "\n")
            for scan, of in lines.items():
                answer = place(scan, self._answers).name
                about = (of.path, of.series, of.kept, of.reason, of.shape, of.spacing)
                last = (of.percentiles, of.orientation, of.note)
                file.write(
                    encode([answer, there.get(answer), signatures[scan], *about, *last]) + "\n"
                )


def _rows(failed: Mapping[Found, str]) -> list[list[str]]:
    return sorted([scan.path, scan.series, reason] for scan, reason in failed.items())
