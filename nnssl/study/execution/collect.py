"""From the runs to results.jsonl, which is all that a report needs: the rows of the study and of
the runs that its description asks for, as they are now, then those of other kinds (`nnssl_study
features`), which are left alone unless a network that they are about has been trained again.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

from nnssl import __version__, files
from nnssl.study import file_lock
from nnssl.study.design import splits
from nnssl.study.design.description import Study
from nnssl.study.execution import jobs, runs
from nnssl.study.execution.job_records import (
    DONE,
    FAILED,
    NOT_DONE,
    FineTuningJob,
    Outcome,
    StudyError,
)
from nnssl.study.execution.runs import StudyRun
from nnssl.study.rows import CaseRow, EpochRow, RunRow, StudyRow

OURS = [kind.KIND for kind in (StudyRow, RunRow, EpochRow, CaseRow)]


def collect(study: Study) -> dict[str, str]:
    """Write `study.results`, whole or not at all; the state of every run by its name.

    Without the folder of the runs the results stay as they are: they may be all that is left.
    While the description is the same, the study's row stays: versions and machine are those that it
    was begun with.
    """
    if study.results.is_file() and not study.runs.is_dir():
        return _states_in(study)
    now = _study_row(study)
    of_runs = {run.name: rows_of(run) for run in runs.all_runs(study)}
    with writing(study.results):
        before = stored_rows(study.results) if study.results.exists() else []
        of_study = (row for row in before if row["kind"] == StudyRow.KIND)
        same = (row for row in of_study if row["description"] == now["description"])
        others = _measured_still(study, [row for row in before if row["kind"] not in OURS])
        rows = [next(same, now), *chain.from_iterable(of_runs.values()), *others]
        files.write_json_lines(study.results, rows)
    return {name: rows[0]["state"] for name, rows in of_runs.items()}


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """One process at a time: another may append what it measures meanwhile."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with file_lock.exclusive(results.with_name(f".{results.name}.lock")):
        yield


def _states_in(study: Study) -> dict[str, str]:
    """The state of every run, as the results have it."""
    rows = stored_rows(study.results)
    states = {row["run"]: row["state"] for row in rows if row["kind"] == RunRow.KIND}
    return {run.name: states.get(run.name, NOT_DONE) for run in runs.all_runs(study)}


def stored_rows(path: Path) -> list[dict]:
    """Of the results at `path`. Raises StudyError without them, and where one says nothing of its
    kind.
    """
    if not path.is_file():
        raise StudyError(f"results {path} do not exist; a study writes them: nnssl_study run")
    rows = files.read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("kind"), str):
            raise StudyError(
                f"row {number} of {path} has no kind, such as {RunRow.KIND}: {str(row)[:60]}. "
                "Remove that row, or the whole file: nnssl_study run and features write it again"
            )
    return rows


def _measured_still(study: Study, rows: list[dict]) -> list[dict]:
    """Without those about networks that have been trained again or are gone."""
    if not any(row.get("trainings") for row in rows):
        return rows  # which spares reading all results once more
    known = {one for folder in study.runs.glob("*") for one in jobs.networks_of(folder)}
    return [row for row in rows if known.issuperset(row.get("trainings") or ())]


def rows_of(run: StudyRun) -> list[dict]:
    """A finished run's rows as its job wrote them, cases with their subject where the task has
    subjects; else one that says that it failed, and why, or is missing.
    """
    outcome = outcome_of(run)
    if outcome.state != DONE:
        return [_unfinished(run, outcome).to_json()]
    rows = jobs.read_rows(run.folder)
    return [_with_subject(row, run.task.subject) for row in rows]


def outcome_of(run: StudyRun) -> Outcome:
    """What became of a run as it is described now: of one that was trained with other settings than
    these there is no result.
    """
    if run.outcome.state != DONE:
        return run.outcome
    if not run.is_done:
        return Outcome(NOT_DONE)
    if is_described_otherwise(run):
        return Outcome(FAILED, _other_settings(run))
    return run.outcome


def is_described_otherwise(run: StudyRun) -> bool:
    """Whether it was begun with other settings than the description says now. Earlier versions did
    not note all of them.
    """
    noted = jobs.noted(run.folder) if (run.folder / jobs.JOB).is_file() else {}
    now = {
        "described": files.fingerprint(run.described),
        "conditions": files.fingerprint(run.conditions),
        "after": files.fingerprint(run.after) if run.after else None,
        "tolerance": run.task.tolerance,
    }
    return any(noted.get(key) not in (None, value) for key, value in now.items())


def _other_settings(run: StudyRun) -> str:
    return (
        "trained with other settings than the description says now: recipe, trainer, dataset, "
        "start, checkpoint, validation or tolerance. Put the earlier ones back. After a change of "
        "the tolerance, or of a path to the same checkpoint, nnssl_study run is enough. Else give "
        f"the study or the arm another name, or remove runs/{run.name} from the study's folder and "
        f"nnU-Net's training under {run.plans}"
    )


def row_of(run: StudyRun) -> RunRow:
    """The row of the run itself."""
    return RunRow.from_json(rows_of(run)[0])


def _with_subject(row: dict, subject: str | None) -> dict:
    if row["kind"] != CaseRow.KIND or not subject:
        return row
    return {**row, "subject": splits.subject_of(row["case"], subject)}


def _unfinished(run: StudyRun, outcome: Outcome) -> RunRow:
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
        state=outcome.state,
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
