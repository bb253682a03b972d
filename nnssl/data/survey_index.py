"""The survey's lines in one file, `surveyed.jsonl`, so that a start need not open one file per
scan.

It holds each line but for its histogram, below a row of what failed. It holds nothing that the
files in `survey/` do not hold. A line whose file is gone or has another size is not taken from
here, and neither is that of a scan which has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from nnssl.data.done import sizes_in
from nnssl.data.scans import Found
from nnssl.data.survey_lines import LINES, is_outdated, line_file
from nnssl.data.survey_report import ScanReport
from nnssl.files import atomic
from nnssl.host_memory import garbage_collection_paused

INDEX = "surveyed.jsonl"
# what an absent or damaged file raises, which is then not used
DAMAGE = (OSError, ValueError, TypeError, KeyError, StopIteration)


class Index:
    """The file as it is now: `known` by the scans' `signatures`, and whether the next one says the
    same.
    """

    @garbage_collection_paused()
    def __init__(self, folder: Path, signatures: Mapping[Found, list]) -> None:
        self.path, self._folder, self._lines = folder / INDEX, folder / LINES, 0
        self.known: dict[Found, ScanReport] = {}
        self._failed: list | None = None
        try:
            self._load(signatures)
        except DAMAGE:
            self.known, self._failed = {}, None

    def _load(self, signatures: Mapping[Found, list]) -> None:
        with self.path.open(encoding="utf-8") as file:
            self._failed = json.loads(next(file))
            self.known = dict(self._read(file, signatures))

    def _read(
        self, file: Iterator[str], signatures: Mapping[Found, list]
    ) -> Iterator[tuple[Found, ScanReport]]:
        there = sizes_in(self._folder) if signatures else {}
        decode = json.JSONDecoder().decode  # `json.loads` checks its arguments for each line
        for text in file:
            file_name, size, signature, line = decode(text)
            self._lines += 1
            scan = Found(line["path"], line["series"])
            same = signatures.get(scan) == signature and there.get(file_name) == size
            if same and not is_outdated(line["reason"]):
                yield scan, ScanReport.without_histogram(line)

    def says(self, lines: Mapping[Found, ScanReport], failed: Mapping[Found, str]) -> bool:
        """Whether it already holds exactly this, so that nothing has to be written."""
        same = self._lines == len(self.known) == len(lines) and self.known.keys() == lines.keys()
        return same and self._failed == _failure_rows(failed)

    def keep(
        self,
        lines: Mapping[Found, ScanReport],
        signatures: Mapping[Found, list],
        failed: Mapping[Found, str],
    ) -> None:
        encode, there = json.JSONEncoder().encode, sizes_in(self._folder)
        with atomic(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(encode(_failure_rows(failed)) + "\n")
            for scan, line in lines.items():
                file_name = line_file(scan, self._folder).name
                fields = line.without("histogram", "state")
                row = [file_name, there.get(file_name), signatures[scan], fields]
                file.write(encode(row) + "\n")


def orientations(folder: Path) -> dict[Found, str]:
    """Of the scans in the file, as stored; none where it is absent or damaged."""
    try:
        with (folder / INDEX).open(encoding="utf-8") as file:
            next(file)
            lines = (line for *_, line in map(json.loads, file))
            return {Found(line["path"], line["series"]): line["orientation"] for line in lines}
    except DAMAGE:
        return {}


def _failure_rows(failed: Mapping[Found, str]) -> list[list[str]]:
    return sorted([scan.path, scan.series, reason] for scan, reason in failed.items())
