"""Scans that are as an earlier start left them need not be compared with the plan again.

`unchanged.json` holds a digest of the scans, the state of what was made of them, and what was
printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from nnssl.data.plan import PLAN, Plan
from nnssl.data.scans import ALL_SERIES, NOT_READ, Found, not_read
from nnssl.data.source_states import are_noted
from nnssl.data.survey import SURVEY_VERSION, is_reported
from nnssl.data.survey_lines import LINES, is_kept, size_and_time
from nnssl.data.survey_report import ScanReport
from nnssl.files import read_json, write_json

UNCHANGED = "unchanged.json"
VERSION = 1  # goes up when scans that were refused may be read now


def digest_of(scans: Iterable[Found]) -> str | None:
    """A hash of path, size and time of change of each; None where these say too little (DICOM), or
    cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for scan in scans:
            if scan.series == ALL_SERIES:
                return None
            row = (*scan, *_state_of(scan))
            digest.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def _state_of(scan: Found) -> Sequence:
    return [not_read(scan)] if scan.series in NOT_READ else size_and_time(scan.path)


class Unchanged:
    """The file in a collection's `folder`, for scans that are found in `searched`. Made before the
    plan is read, so that a plan which is changed meanwhile is noticed.
    """

    def __init__(self, folder: Path, searched: Sequence[Path | str]) -> None:
        self.folder, self._searched = folder, searched
        self._plan = self._plan_state()

    def said(self, digest: str | None) -> list[str] | None:
        """What was printed when all was as it is now; None where it was not, or nobody knows."""
        try:
            kept = read_json(self.folder / UNCHANGED)
            same = digest is not None and kept == self._content(digest, kept["said"])
            return list(map(str, kept["said"])) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(
        self, digest: str | None, plan: Plan, lines: Sequence[ScanReport], said: Sequence[str]
    ) -> None:
        """Keep what was `said`, unless the next start may say something else. Where it cannot be
        written, the next start compares again.
        """
        changed = self._plan not in (None, self._plan_state())
        if digest is not None and not changed and self._is_settled(plan, lines):
            with suppress(OSError):
                write_json(self.folder / UNCHANGED, self._content(digest, said))

    def _is_settled(self, plan: Plan, lines: Sequence[ScanReport]) -> bool:
        """Whether each scan has its answer, and each case its scan: another start would look for
        those again.
        """
        found = {line.path for line in lines}
        return all(case.source in found for case in plan.cases) and all(
            _is_final(line, self.folder) for line in lines
        )

    def _content(self, digest: str, said: Sequence[str]) -> dict:
        answers = size_and_time(self.folder / LINES)
        made = [is_reported(self.folder), are_noted(self.folder)]
        return {
            "digest": digest,
            "searched": [str(Path(folder).absolute()) for folder in self._searched],
            "folder": str(self.folder.absolute()),
            "made": [SURVEY_VERSION, VERSION, *made, self._plan_state(), answers],
            "said": list(said),
        }

    def _plan_state(self) -> list[int] | None:
        """Changes when plan.json does; None where there is none."""
        try:
            return size_and_time(self.folder / PLAN)
        except OSError:
            return None


def _is_final(line: ScanReport, folder: Path) -> bool:
    """False for what failed without an answer, which the next survey tries again."""
    return line.kept or line.series in NOT_READ or is_kept(line, folder)
