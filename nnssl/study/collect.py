"""From the runs to results.jsonl, which is all that a report needs.

Rows are only ever appended: of two that tell of the same (a run, a case and label of a run, an epoch of a run, the
study), the later one counts. Rows of other kinds are left alone.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nnssl import __version__, files
from nnssl.study import runs
from nnssl.study.description import Study
from nnssl.study.runs import Run


def collect(study: Study) -> dict[str, str]:
    """Append what is new to `study.results`; the state of every run by its name."""
    study.folder.mkdir(parents=True, exist_ok=True)
    _mend(study.results)
    known = {_key(row): row for row in files.read_json_lines(study.results)} if study.results.exists() else {}
    states = {}
    new: list[dict] = []
    for row in [_study_row(study)]:
        if known.get(_key(row), {}).get("description") != row["description"]:
            new.append(row)
    for run in runs.of(study):
        rows = rows_of(run)
        states[run.name] = rows[0]["state"]
        if known.get(_key(rows[0])) != rows[0]:
            new += rows
    with study.results.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in new))
    return states


def rows_of(run: Run) -> list[dict]:
    """A finished run's rows as its job wrote them; else one that says that it failed, and why, or is missing."""
    state, reason = runs.state(run.folder)
    if state == "done" and (run.folder / runs.ROWS).is_file():
        return files.read_json_lines(run.folder / runs.ROWS)
    job = files.read_json(run.folder / runs.JOB) if (run.folder / runs.JOB).is_file() else {}
    return [
        {
            "kind": "run", "run": run.name, "task": run.task.name, "arm": run.arm.name, "budget": run.budget,
            "cases": job.get("cases"), "seed": run.seed, "configuration": run.task.configuration,
            "trainer": run.trainer, "plans": run.plans, "state": "failed" if state == "failed" else "missing",
            "hours": None, "epochs": None, "reason": reason,
        }
    ]  # fmt: skip


def _key(row: Mapping) -> tuple:
    return row["kind"], row.get("run"), row.get("case"), row.get("label"), row.get("epoch")


def _mend(path: Path) -> None:
    """Cut off a last line that a kill left unfinished."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        files.write_json_lines(path, files.read_json_lines(path))


def _study_row(study: Study) -> dict:
    return {
        "kind": "study",
        "name": study.name,
        "description": json.loads(json.dumps(study.source, default=str)),
        "versions": {"nnssl": __version__, **_versions(("nnunetv2", "torch")), "python": platform.python_version()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count(), "accelerator": _accelerator()},
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
