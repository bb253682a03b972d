"""Whether a run that is to continue is the one that was begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def require_same_run(saved: dict, now: dict, folder: Path, may_differ: Sequence[str]) -> None:
    """Raises ValueError, naming the differences, where the headers are not of one run.

    `may_differ`: fields of `RunConfig` in which a run that continues may differ from what it was.
    """

    def fixed(header: dict) -> dict:
        run = {name: value for name, value in header["run"].items() if name not in may_differ}
        return {**run, **header["method_config"], "method": header["method"], "crop": header["crop"],
                "preset": header["preset"], "plan": header["plan"]["fingerprint"],
                "cases": header["plan"]["cases"], "parcels": header.get("parcels"),
                "start": header.get("start", {}).get("sha256")}  # fmt: skip

    # a file knows lists, not tuples
    before, after = fixed(saved), fixed(json.loads(json.dumps(now)))
    if before["parcels"] is None:  # of an earlier version, which did not note them
        del after["parcels"]
    changed = [
        f"{name}: was {before.get(name)}, now {after[name]}"
        for name in after
        if before.get(name) != after[name]
    ]
    if changed:
        raise ValueError(
            f"the run in {folder} was started with other settings and cannot be continued with "
            "these:\n  "
            + "\n  ".join(changed)
            + "\nType these as they were, or start again in another folder with -o"
        )
