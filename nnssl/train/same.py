"""Check that a run to be continued is the one that was started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn


def require_same_run(saved: dict, now: dict, folder: Path, may_differ: Sequence[str]) -> None:
    """Raises ValueError, naming the differences, where the headers are not of one run.

    `may_differ`: fields of `RunConfig` in which a run that continues may differ from what it was.
    """
    # a file knows lists, not tuples
    before, after = _fixed(saved, may_differ), _fixed(json.loads(json.dumps(now)), may_differ)
    if before["parcels"] is None:  # of an earlier version, which did not note them
        del after["parcels"]
    if changed := _changes(before, after):
        lines = "\n  ".join(changed)
        raise ValueError(
            f"the run in {folder} was started with other settings and cannot be continued with "
            f"these:\n  {lines}\nUse the original settings, or start again in another folder with "
            "-o"
        )


def load_weights(method: nn.Module, weights: dict, file: Path) -> None:
    """Raises ValueError for weights of an earlier version, whose method was built otherwise."""
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{file} cannot be continued: its weights do not match this version's method "
            f"({str(error).splitlines()[-1].strip()}). Start from its encoder with --from {file} "
            "and another -o FOLDER, or continue it with the version of nnssl that began it"
        ) from error


def _changes(before: dict, after: dict) -> list[str]:
    return [
        f"{name}: was {before.get(name)}, now {value}"
        for name, value in after.items()
        if before.get(name) != value
    ]


def _fixed(header: dict, may_differ: Sequence[str]) -> dict:
    """What may not change in a run, by name."""
    return {
        **{name: value for name, value in header["run"].items() if name not in may_differ},
        **header["method_config"],
        **{name: header[name] for name in ("method", "crop")},
        # with a start the size of the encoder is that of its checkpoint
        "preset": None if "start" in header else header["preset"],
        "plan": header["plan"]["fingerprint"],
        "cases": header["plan"]["cases"],
        "parcels": header.get("parcels"),
        "start": header.get("start", {}).get("sha256"),
    }
