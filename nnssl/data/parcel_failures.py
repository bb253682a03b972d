"""Why parcels (`nnssl.data.parcel_maps`) cannot be made, as errors, and the note on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nnssl.files import inside, read_json

FAILED = "parcels_failed.json"  # for what they were tried, and which scans could not be registered


class NoParcelsError(ValueError):
    """The scans of a collection cannot have parcels; the message is the reason."""


class TooFewRegistered(NoParcelsError):
    """Too few scans could be registered to one another to create parcels."""


class ReadOnlyCollection(NoParcelsError):
    """Parcels would have to be written in a folder that may only be read."""


def require_writable(folder: Path, classes: int) -> None:
    """Raises ReadOnlyCollection for a folder that may only be read."""
    if not os.access(folder, os.W_OK):
        raise ReadOnlyCollection(
            f"{folder} is read-only and holds no parcels of {classes} classes for these scans"
        )


def how_to_go_on(case: str, reason: str) -> str:
    """The words of an error that may pass, of one case."""
    return (
        f"the parcels of {case} cannot be made now: {reason}. Nothing of this is remembered: type "
        "the same command again, with fewer processes (-np 1) where memory is short, or with "
        "--check where the preprocessed scan is damaged. SMIT also trains without parcels (--set "
        "w_parcels=0)"
    )


def read_note(path: Path) -> dict | None:
    """A note on parcels; None if it is absent or damaged."""
    try:
        metadata = read_json(path)
    except (OSError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def require_not_failed(folder: Path, made_for: dict, needed: int) -> None:
    """Raises TooFewRegistered where the same scans were tried before; classes do not matter."""
    metadata = read_note(inside(folder, FAILED)) or {}
    names = made_for.keys() - {"classes"}
    same = all(metadata.get(name) == made_for[name] for name in names)
    cases, left_out = metadata.get("cases"), metadata.get("left_out")
    if same and isinstance(cases, list) and isinstance(left_out, dict):
        require_enough_scans(needed, cases, left_out)


def require_enough_scans(needed: int, cases: Sequence[str], failed: dict[str, str]) -> None:
    if len(cases) < needed:
        raise TooFewRegistered(
            f"{len(cases)} of {len(cases) + len(failed)} scans could be registered to one another, "
            f"{needed} are needed{_first_reason(failed)}"
        )


def _first_reason(failed: dict[str, str]) -> str:
    reasons = list(failed.values())
    return f" (the first that could not: {reasons[0]})" if reasons else ""
