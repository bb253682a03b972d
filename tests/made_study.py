"""Studies without nnU-Net: jobs whose commands are small programs, and finished runs that nobody
trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from nnssl import files
from nnssl.study.design import description
from nnssl.study.execution import runs

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
    return description.load(path)


def program(folder: Path, code: str, makes: str = "made") -> Path:
    """A job's folder: `code` of Python is its only command; the job is done when `makes` is there
    afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(
        folder / runs.JOB,
        {
            "commands": [[sys.executable, "-c", code]],
            "makes": str(folder / makes),
            "afresh": False,
            "trains": None,
            "plans": None,
            "fingerprint": "a",
        },
    )
    return folder


def finished(run: runs.Run, dice: float = 0.8, hours: float = 0.5, case: str = "a") -> None:
    """Give `run` an outcome and rows."""
    head = {
        "kind": "run",
        "run": run.name,
        "task": run.task.name,
        "arm": run.arm.name,
        "budget": run.budget,
        "cases": 2,
        "seed": run.seed,
        "configuration": "3d_fullres",
        "trainer": run.trainer,
        "plans": run.plans,
        "state": "done",
        "hours": hours,
        "epochs": 10,
        "reason": None,
    }
    row = {
        "kind": "case",
        "run": run.name,
        "case": case,
        "label": "liver",
        "dice": dice,
        "surface_dice": dice,
        "hd95": 1.0,
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_json_lines(run.folder / runs.ROWS, [head, row])
    files.write_json(run.folder / runs.OUTCOME, {"state": "done", "reason": None})
