"""Scans that are as an earlier start left them need not be compared with the plan again.

`unchanged.json` holds a digest of the scans, the state of what was made of them, and what was
printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.scans import ALL_SERIES, NOT_READ, Found
from nnssl.data.survey import SURVEY_VERSION, is_reported
from nnssl.data.survey_lines import LINES, line_file, size_and_time
from nnssl.data.survey_report import ScanReport
from nnssl.files import read_json, write_json

UNCHANGED = "unchanged.json"


def digest_of(scans: Iterable[Found]) -> str | None:
    """Of path, size and time of change of each; None where these say too little (DICOM), or cannot
    be read.
    """
    digest = hashlib.sha256()
    for scan in scans:
        if scan.series == ALL_SERIES:
            return None
        try:
            row = (*scan, *size_and_time(scan))
        except OSError:
            return None
        digest.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Unchanged:
    """The file in a collection's `folder`, for scans of `digest` found in `searched`."""

    folder: Path
    digest: str | None
    searched: Sequence[Path | str]

    def said(self) -> list[str] | None:
        """What was printed when all was as it is now; None where it was not, or nobody knows."""
        try:
            kept = read_json(self.folder / UNCHANGED)
            same = None not in (self.digest, kept["digest"]) and kept == self._content(kept["said"])
            return list(map(str, kept["said"])) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, lines: Iterable[ScanReport], said: Sequence[str]) -> None:
        """Keep what was `said`, unless a next survey may give other `lines`."""
        if self.digest is not None and all(_is_final(line, self.folder) for line in lines):
            write_json(self.folder / UNCHANGED, self._content(said))

    def _content(self, said: Sequence[str]) -> dict:
        made = [Found(str(self.folder / name)) for name in ("plan.json", LINES)]
        return {
            "digest": self.digest,
            "searched": [str(Path(folder).absolute()) for folder in self.searched],
            "made": [SURVEY_VERSION, is_reported(self.folder), *map(size_and_time, made)],
            "said": list(said),
        }


def _is_final(line: ScanReport, folder: Path) -> bool:
    """False for what failed without an answer, which the next survey tries again."""
    return line.kept or line.series in NOT_READ or line_file(line.found, folder).exists()
