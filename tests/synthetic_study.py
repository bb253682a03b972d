"""Studies without nnU-Net: jobs whose commands are small programs, and finished runs that nobody
trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from nnssl import files
from nnssl.study.design import description
from nnssl.study.execution import jobs, runs
from nnssl.study.execution.job_records import FineTuningJob, PretrainingJob
from nnssl.study.rows import CaseRow, RunRow

ARMS = [
    {"name": "scratch", "start": "scratch"},
    {"name": "smit", "start": "checkpoint", "checkpoint": "smit.pth"},
]
TASKS = [{"name": "organs", "dataset": "902"}]


def study(folder: Path, **changes) -> description.Study:
    content = {
        "name": "small",
        "arms": ARMS,
        "tasks": TASKS,
        "budgets": [2],
        "device": "cpu",
    } | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return description.load_study(path)


def program(folder: Path, code: str, makes: str = "made") -> Path:
    """A job's folder: `code` of Python is its only command; the job is done when `makes` is there
    afterwards.
    """
    jobs.write_job(
        folder,
        PretrainingJob(
            commands=[[sys.executable, "-c", code]], makes=folder / makes, fingerprint="a"
        ),
    )
    return folder


def fine_tuning(**changes) -> FineTuningJob:
    """A run's job."""
    about = {
        "run": "organs__smit__2__0",
        "task": "organs",
        "arm": "smit",
        "budget": 2,
        "cases": 2,
        "seed": 0,
        "dataset": "Dataset902_Phantoms",
        "configuration": "3d_fullres",
        "fold": 5,
        "trainer": "SwinSSLTrainer",
        "plans": "small-organs-smit",
        "device": "cpu",
        "tolerance": 1.0,
        "fingerprint": "a",
    }
    return FineTuningJob(**about | changes)


def finished(run: runs.StudyRun, dice: float = 0.8, hours: float = 0.5, case: str = "a") -> None:
    """Give `run` an outcome and rows."""
    head = RunRow(
        run=run.name,
        task=run.task.name,
        arm=run.arm.name,
        budget=run.budget,
        cases=2,
        seed=run.seed,
        configuration="3d_fullres",
        trainer=run.trainer,
        plans=run.plans,
        state="done",
        hours=hours,
        epochs=10,
    )
    row = CaseRow(run=run.name, case=case, label="liver", dice=dice, surface_dice=dice, hd95=1.0)
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_json_lines(run.folder / jobs.ROWS, [head.to_json(), row.to_json()])
    files.write_json(run.folder / jobs.OUTCOME, {"state": "done", "reason": None})
