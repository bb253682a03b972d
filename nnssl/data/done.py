"""The preprocessed cases, known at the start of a run without opening a note for each."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from nnssl.data.packing import unpack
from nnssl.files import inside, read_json, write_json
from nnssl.host_memory import garbage_collection_paused
from nnssl.shapes import ceil_div

# the sizes of each case's voxels and note, of all that were stored when a run began
INDEX = "stored.json"
NAMES = {"fingerprint", "bytes", "spacing"}  # of a note, beside those of the body


class Done:
    """`case_id in done`: the case is stored whole by the plan of `fingerprint`.

    What the index knows needs one listing of the folder; of others the notes are read, and of those
    whose files have other sizes than the index says. ValueError as
    `is_done`.
    """

    @garbage_collection_paused()
    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._known = self._read()
        self._there = sizes_in(folder) if self._known else {}
        self._all_known = True  # of the cases that were asked for

    def __contains__(self, case_id: str) -> bool:
        known = self._known.get(case_id)
        if known is not None and known == _sizes_of(case_id, self._there):
            return True
        self._all_known = False
        return is_done(case_id, self.fingerprint, self.folder)

    def keep(self, cases: Iterable[str]) -> None:
        """Write the index of `cases`, which are stored now, unless it already lists them.

        Where it knew all that were asked for, and no others, the folder is not listed again.
        """
        cases = list(cases)
        if self._all_known and len(cases) == len(self._known):
            return
        there = sizes_in(self.folder)
        known = {case: _sizes_of(case, there) for case in cases if f"{case}.b2nd" in there}
        if known != self._known:
            content = {"fingerprint": self.fingerprint, "bytes": known}
            write_json(self.folder / INDEX, content)

    def _read(self) -> dict[str, list]:
        try:
            content = read_json(self.folder / INDEX)
        except (OSError, ValueError):
            return {}
        ours = isinstance(content, dict) and content.get("fingerprint") == self.fingerprint
        known = content.get("bytes") if ours else None
        return known if isinstance(known, dict) else {}


def _sizes_of(case_id: str, there: dict[str, int]) -> list:
    """Bytes of the case's voxels and of its note; None for a file that is not there."""
    return [there.get(f"{case_id}.b2nd"), there.get(f"{case_id}.json")]


def sizes_in(folder: Path) -> dict[str, int]:
    """The bytes of each file in `folder`."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def is_done(case_id: str, fingerprint: str, folder: Path) -> bool:
    """True when the case is stored whole. Raises ValueError when it is stored by another plan.

    A note that is damaged, or of another form, counts as none: the case is stored again.
    """
    note_file, array = _files_of(case_id, folder)
    try:
        properties = read_json(note_file)
        size = os.stat(array).st_size  # noqa: PTH116
    except (FileNotFoundError, ValueError):
        return False
    if not _is_note(properties):
        return False
    if properties["fingerprint"] != fingerprint:
        raise ValueError(
            f"{note_file} was written by plan {properties['fingerprint']}, this plan is "
            f"{fingerprint}; files of two plans are never mixed: delete {folder}, or choose "
            "another --name"
        )
    return properties["bytes"] == size


def _files_of(case_id: str, folder: Path) -> tuple[Path, Path]:
    """The case's note and voxels."""
    return inside(folder, f"{case_id}.json"), inside(folder, f"{case_id}.b2nd")


def _is_note(properties: object) -> bool:
    if not isinstance(properties, dict):
        return False
    try:
        return _is_body_whole(properties) and properties.keys() >= NAMES
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, zlib.error):
        return False


def _is_body_whole(properties: dict) -> bool:
    """Whether it has a number for each block of the scan."""
    shape = properties["shape"]
    blocks = ceil_div(shape, [properties["body_block"]] * len(shape))
    return len(blocks) == 3 and len(unpack(properties["body"])) == math.prod(blocks)
