"""Doing many jobs (`nnssl.study.execution.job`) on this machine, several beside each other;
`nnssl.study.execution.slurm` is its twin.

Both keep the same promises: a job that is done is not done again, one that fails is tried once
more, and the others continue. An executor is a function of the jobs' folders; what became of each
is in its outcome.json.
"""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from nnssl import limits
from nnssl.study.design.description import Study
from nnssl.study.execution import jobs
from nnssl.study.execution.job_records import DONE, FAILED, NOT_DONE, Outcome, StudyError
from nnssl.types import PrintFn

ATTEMPTS = 2
PROCESSES = "nnUNet_def_n_proc"  # nnU-Net's: how many write the predictions of a validation

Executor = Callable[[Sequence[Path], PrintFn], None]
Slot = Mapping[str, str]  # environment variables, such as CUDA_VISIBLE_DEVICES


def chosen(kind: str, study: Study, parallel: int | None) -> Executor:
    """The executor that `--executor` names."""
    if kind == "slurm":
        from nnssl.study.execution.slurm import slurm

        return slurm(study.folder / "slurm", study.slurm)
    return local(device_slots(study.device, parallel))


def local(slots: Sequence[Slot]) -> Executor:
    """One job at a time in each of `slots`."""
    return lambda folders, print_fn: _Local(slots, print_fn).do_all(folders)


class _Local:
    """The free slots and the processes of one call."""

    def __init__(self, slots: Sequence[Slot], print_fn: PrintFn) -> None:
        self.print_fn, self.count = _above_bars(print_fn), len(slots)
        self.free: queue.Queue[Slot] = queue.Queue()
        for slot in slots:
            self.free.put(slot)
        self.processes: set[subprocess.Popen] = set()
        # nnU-Net starts eight for a validation, and each of them imports PyTorch
        writers = min(8, limits.cores() // self.count)
        self._unless_set = {PROCESSES: str(max(1, writers))}
        self.stopping = False

    def do_all(self, folders: Sequence[Path]) -> None:
        with ThreadPoolExecutor(self.count) as pool, _job_bar(len(folders)) as bar:
            try:
                for future in as_completed(pool.submit(self._run_job, f) for f in folders):
                    future.result()
                    bar.update()
            except BaseException:  # Ctrl-C, SIGTERM: what runs is ended, and continues another time
                self.stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.processes):
                    process.terminate()
                raise

    def _run_job(self, folder: Path) -> None:
        slot = self.free.get()
        try:
            for attempt in range(1, ATTEMPTS + 1):
                status = self._process(folder, slot)
                silent = f"the process ended with status {status}"
                if self.stopping or is_over(folder, attempt, silent, self.print_fn):
                    return
        finally:
            self.free.put(slot)

    def _process(self, folder: Path, slot: Slot) -> int:
        """One attempt; the status with which it ended."""
        jobs.forget_failure(folder)
        process = self._start(folder, slot)
        status = process.wait()
        self.processes.discard(process)
        return status

    def _start(self, folder: Path, slot: Slot) -> subprocess.Popen:
        command = [sys.executable, "-m", "nnssl.study.execution.job", str(folder)]
        process = subprocess.Popen(command, env={**self._unless_set, **os.environ, **slot})
        self.processes.add(process)
        if self.stopping:  # before this one could be seen
            process.terminate()
        return process


def _job_bar(jobs: int) -> tqdm:
    """With the time left; none for no jobs."""
    return tqdm(total=jobs, unit="job", smoothing=0, dynamic_ncols=True, disable=not jobs)


def _above_bars(print_fn: PrintFn) -> PrintFn:
    """A line does not begin in the middle of a bar."""

    def show(text: str) -> None:
        with tqdm.external_write_mode():
            print_fn(text)

    return show


def is_over(folder: Path, attempt: int, otherwise: str, print_fn: PrintFn) -> bool:
    """Whether nothing is left to try. A job that ended without an outcome gets `otherwise` as its
    reason.
    """
    if jobs.outcome(folder).state == NOT_DONE:
        jobs.write_outcome(folder, Outcome(FAILED, otherwise))
    outcome, last = jobs.outcome(folder), attempt == ATTEMPTS
    print_fn(f"  {folder.name}: {_outcome_line(folder, outcome, last)}")
    return outcome.state == DONE or last


def _outcome_line(folder: Path, outcome: Outcome, last: bool) -> str:
    """What became of an attempt, in words."""
    if outcome.state == DONE:
        return "done"
    if last:
        return f"failed ({outcome.in_short}); {folder / jobs.LOG} has the details"
    return f"failed, retrying once ({outcome.in_short})"


# Where runs go beside each other


def device_slots(device: str, parallel: int | None) -> list[Slot]:
    """By default one run per GPU, or a single one on a CPU."""
    if device != "cuda":
        return [{}] * parallel_runs(device, parallel)
    gpus = itertools.cycle(_visible_gpus())
    return [{"CUDA_VISIBLE_DEVICES": next(gpus)} for _ in range(parallel_runs(device, parallel))]


def _visible_gpus() -> list[str]:
    """Their names, at least one."""
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise StudyError(
            "the description has device: cuda, but no GPU is available; write device: cpu, or use "
            "--executor slurm"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:gpus] if named else list(map(str, range(gpus)))


def parallel_runs(device: str, parallel: int | None) -> int:
    """The number of concurrent runs; also without a GPU, such as to estimate the cost."""
    if parallel or device != "cuda":
        return parallel or 1
    import torch

    return max(1, torch.cuda.device_count())
