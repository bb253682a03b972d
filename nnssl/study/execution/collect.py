"""From the runs to results.jsonl, which is all that a report needs: the rows of the study and of
the runs that its description asks for, as they are now, then those of other kinds (`nnssl_study
features`), which are left alone."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from nnssl import __version__, files
from nnssl.study.design import splits
from nnssl.study.design.description import Study
from nnssl.study.execution import runs
from nnssl.study.execution.runs import Run

OURS = ("study", "run", "epoch", "case")


def collect(study: Study) -> dict[str, str]:
    """Write `study.results`, whole or not at all; the state of every run by its name."""
    before = files.read_json_lines(study.results) if study.results.exists() else []
    rows = [_study_row(study, next((row for row in before if row["kind"] == "study"), None))]
    states = {}
    for run in runs.all_runs(study):
        of_run = rows_of(run)
        states[run.name] = of_run[0]["state"]
        rows += of_run
    rows += [row for row in before if row["kind"] not in OURS]
    files.write_json_lines(study.results, rows)
    return states


def rows_of(run: Run) -> list[dict]:
    """A finished run's rows as its job wrote them, cases with their subject where the task has
    subjects; else one that says that it failed, and why, or is missing."""
    state, reason = runs.state(run.folder)
    if state == "done" and (run.folder / runs.ROWS).is_file():
        rows = files.read_json_lines(run.folder / runs.ROWS)
        for row in rows if run.task.subject else []:
            if row["kind"] == "case":
                row["subject"] = splits.subject_of(row["case"], run.task.subject)
        return rows
    job = files.read_json(run.folder / runs.JOB) if (run.folder / runs.JOB).is_file() else {}
    return [
        {
            "kind": "run",
            "run": run.name,
            "task": run.task.name,
            "arm": run.arm.name,
            "budget": run.budget,
            "cases": job.get("cases"),
            "seed": run.seed,
            "configuration": run.task.configuration,
            "trainer": run.trainer,
            "plans": run.plans,
            "state": "failed" if state == "failed" else "missing",
            "hours": None,
            "epochs": None,
            "reason": reason,
        }
    ]


def _study_row(study: Study, before: dict | None) -> dict:
    """That of `before` while the description is the same: versions and machine are those it was
    begun with.
    """
    description = json.loads(json.dumps(study.source, default=str))
    if before and before["description"] == description:
        return before
    return {
        "kind": "study",
        "name": study.name,
        "description": description,
        "versions": {
            "nnssl": __version__,
            **_versions(("nnunetv2", "torch")),
            "python": platform.python_version(),
        },
        "machine": {
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "accelerator": _accelerator(),
        },
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
