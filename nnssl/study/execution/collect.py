"""From the runs to results.jsonl, which is all that a report needs: the rows of the study and of
the runs that its description asks for, as they are now, then those of other kinds (`nnssl_study
features`), which are left alone.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

from nnssl import __version__, files
from nnssl.study.design import splits
from nnssl.study.design.description import Study
from nnssl.study.execution import jobs, runs
from nnssl.study.execution.jobs import DONE, NOT_DONE, FineTuningJob
from nnssl.study.execution.runs import StudyRun
from nnssl.study.rows import CaseRow, EpochRow, RunRow, StudyRow

OURS = [kind.KIND for kind in (StudyRow, RunRow, EpochRow, CaseRow)]


def collect(study: Study) -> dict[str, str]:
    """Write `study.results`, whole or not at all; the state of every run by its name.

    While the description is the same, the study's row stays: versions and machine are those that it
    was begun with.
    """
    now = _study_row(study)
    of_runs = {run.name: rows_of(run) for run in runs.all_runs(study)}
    before = files.read_json_lines(study.results) if study.results.exists() else []
    of_study = (row for row in before if row["kind"] == StudyRow.KIND)
    same = (row for row in of_study if row["description"] == now["description"])
    others = [row for row in before if row["kind"] not in OURS]
    rows = [next(same, now), *chain.from_iterable(of_runs.values()), *others]
    files.write_json_lines(study.results, rows)
    return {name: rows[0]["state"] for name, rows in of_runs.items()}


def rows_of(run: StudyRun) -> list[dict]:
    """A finished run's rows as its job wrote them, cases with their subject where the task has
    subjects; else one that says that it failed, and why, or is missing.
    """
    path = run.folder / jobs.ROWS
    if not (run.is_done and path.is_file()):
        return [_unfinished(run).to_json()]
    return [_with_subject(row, run.task.subject) for row in files.read_json_lines(path)]


def row_of(run: StudyRun) -> RunRow:
    """Of the run itself."""
    return RunRow.from_json(rows_of(run)[0])


def _with_subject(row: dict, subject: str | None) -> dict:
    if row["kind"] != CaseRow.KIND or not subject:
        return row
    return {**row, "subject": splits.subject_of(row["case"], subject)}


def _unfinished(run: StudyRun) -> RunRow:
    outcome = run.outcome
    return RunRow(
        run=run.name,
        task=run.task.name,
        arm=run.arm.name,
        budget=run.budget,
        cases=_cases_of(run),
        seed=run.seed,
        configuration=run.task.configuration,
        trainer=run.trainer,
        plans=run.plans,
        state=NOT_DONE if outcome.state == DONE else outcome.state,
        reason=outcome.reason,
    )


def _cases_of(run: StudyRun) -> int | None:
    """How many it is trained with; None before its job is written."""
    begun = (run.folder / jobs.JOB).is_file()
    job = jobs.read_job(run.folder) if begun else None
    return job.cases if isinstance(job, FineTuningJob) else None


def _study_row(study: Study) -> dict:
    """What the study is, by these versions and on this machine."""
    description = json.loads(json.dumps(study.source, default=str))
    row = StudyRow(
        name=study.name, description=description, versions=_versions(), machine=_machine()
    )
    return row.to_json()


def _machine() -> dict:
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "accelerator": _accelerator(),
    }


def _versions() -> dict[str, str]:
    others = {package: _package_version(package) for package in ("nnunetv2", "torch")}
    return {"nnssl": __version__, **others, "python": platform.python_version()}


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
