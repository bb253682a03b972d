"""What each preprocessed scan was stored from: `sources.json` holds the size and time of change of
its file, or what stands for those of a DICOM series.

A scan that was rewritten since is noticed by this one file; no scan is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from nnssl.data.crops import PARCELS
from nnssl.files import inside, names_in, read_json, write_json
from nnssl.host_memory import garbage_collection_paused

SOURCES = "sources.json"


@garbage_collection_paused()
def states_of_stored(folder: Path) -> dict[str, list]:
    """{case id: state} of the cases in `folder` that are stored. A case of an earlier version has
    none.
    """
    return _of_stored(_noted_states(folder), folder)


@garbage_collection_paused()
def keep_states(folder: Path, now: Mapping[str, list]) -> None:
    """Note the states `now`, {case id: state}, before their cases are stored from them.

    A case that is stored already keeps what is noted of it; where nothing is, it counts as stored
    from what is there now. Raises NoRoomError where the disk is full.
    """
    noted = _noted_states(folder)
    states = {**noted, **now, **_of_stored(noted, folder)}
    if states != noted or not are_noted(folder):
        write_json(folder / SOURCES, states)


def are_noted(folder: Path) -> bool:
    """False for a collection of an earlier version."""
    return (folder / SOURCES).exists()


def forget_stored(folder: Path, cases: Iterable[str]) -> None:
    """Remove what is stored of cases, so that `preprocess` stores them again.

    The note goes first: without it a case is not stored, wherever this is stopped. Parcels go as
    well, since they are those of the former voxels.
    """
    for case in cases:
        for end in (".json", ".b2nd", PARCELS):
            inside(folder, case + end).unlink(missing_ok=True)


def _noted_states(folder: Path) -> dict[str, list]:
    """Empty where the file is absent or damaged."""
    try:
        noted = read_json(folder / SOURCES)
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _of_stored(states: Mapping[str, list], folder: Path) -> dict[str, list]:
    names = names_in(folder) if states else set()
    return {case: state for case, state in states.items() if f"{case}.json" in names}
