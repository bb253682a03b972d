"""Run a study's jobs on SLURM, through submitit. All are submitted at once. Who waits for them may
be stopped: the jobs continue, and another call finds those that still wait or run and does not
submit them again. What became of a job is read from its outcome.json, and whether it is still in
the queue from squeue: clusters without accounting have no sacct.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import files
from nnssl.study.execution import job, jobs
from nnssl.study.execution.executor import Executor, is_over
from nnssl.study.execution.job_records import NOT_DONE, StudyError
from nnssl.types import PrintFn

if TYPE_CHECKING:
    from submitit import AutoExecutor

SECONDS = 5.0  # between two looks at the queue
NUMBER = "slurm.json"  # beside job.json
SQUEUE = ("squeue", "-h", "-o", "%T", "-j")
GONE = (
    "",
    "COMPLETED",
    "COMPLETING",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
)


def slurm(folder: Path, parameters: Mapping[str, object]) -> Executor:
    """An executor.

    folder:     for submitit's scripts and logs, where all nodes see it.
    parameters: of submitit's AutoExecutor, such as slurm_partition, timeout_min, gpus_per_node,
    mem_gb. Raises StudyError where submitit or SLURM is missing, or a parameter is refused.
    """
    maker = _submitit(folder)
    for key, value in parameters.items():
        _set_parameter(maker, str(key), value)

    def execute(folders: Sequence[Path], print_fn: PrintFn) -> None:
        waiting = [_Job(maker, one, print_fn) for one in folders]
        while waiting := [one for one in waiting if not one.finished(folder)]:
            time.sleep(SECONDS)

    return execute


def _submitit(folder: Path) -> AutoExecutor:
    try:
        import submitit
    except ImportError as error:
        raise StudyError(
            '--executor slurm needs submitit: pip install "nnssl-swin[slurm]"'
        ) from error
    try:
        return submitit.AutoExecutor(folder=str(folder / "%j"), cluster="slurm")
    except RuntimeError as error:
        raise StudyError(f"SLURM is not usable here ({error}); use --executor local") from error


def _set_parameter(maker: AutoExecutor, key: str, value: object) -> None:
    try:
        maker.update_parameters(**{key: value})
    except (NameError, AssertionError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"slurm: submitit refuses {key}: {value!r} ({error}). Correct it in the description, "
            "such as slurm: {slurm_partition: gpu, timeout_min: 1440}; SLURM's own parameters "
            "begin with slurm_"
        ) from error


@dataclass
class _Job:
    """One folder's job in the queue."""

    maker: AutoExecutor
    folder: Path
    print_fn: PrintFn
    number: str = field(init=False)
    attempt: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        number_file = self.folder / NUMBER
        if number_file.is_file() and in_queue(earlier := files.read_json(number_file)["job"]):
            self.number = earlier
            self.print_fn(f"  {self.folder.name}: job {earlier}, submitted earlier")
        else:
            self.submit()

    def submit(self) -> None:
        jobs.forget_failure(self.folder)
        self.number = self.maker.submit(job.run_job, self.folder).job_id
        files.write_json(self.folder / NUMBER, {"job": self.number})
        self.print_fn(f"  {self.folder.name}: job {self.number}")

    def finished(self, logs: Path) -> bool:
        """Whether nothing is left to wait for; a job that failed is submitted once more."""
        if jobs.outcome(self.folder).state == NOT_DONE and in_queue(self.number):
            return False
        gone = (
            f"job {self.number} left the queue without a result; its output is in "
            f"{logs / self.number}"
        )
        if is_over(self.folder, self.attempt, gone, self.print_fn):
            return True
        self.attempt += 1
        self.submit()
        return False


def in_queue(number: str) -> bool:
    """Whether SLURM knows the job as waiting or running. Raises StudyError where squeue gives no
    answer.
    """
    done = subprocess.run([*SQUEUE, number], capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise StudyError(
            f"squeue does not respond: {done.stderr.strip()}; the jobs continue, the same command "
            "waits for them"
        )
    return done.stdout.strip() not in GONE
