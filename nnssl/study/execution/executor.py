"""Doing many jobs (`nnssl.study.execution.job`) on this machine, several beside each other;
`nnssl.study.execution.slurm` is its twin.

Both keep the same promises: a job that is done is not done again, one that fails is tried once
more, and the others continue. An executor is a function of the jobs' folders; what became of each
is in its outcome.json.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nnssl import files
from nnssl.study.execution import runs

ATTEMPTS = 2

Say = Callable[[str], None]
Executor = Callable[[Sequence[Path], Say], None]


def local(places: Sequence[Mapping[str, str]]) -> Executor:
    """One job at a time in each of `places`, which are environment variables, such as
    CUDA_VISIBLE_DEVICES.
    """

    def execute(folders: Sequence[Path], say: Say) -> None:
        free: queue.Queue[Mapping[str, str]] = queue.Queue()
        for place in places:
            free.put(place)
        processes: set[subprocess.Popen] = set()
        stopping = False

        def one(folder: Path) -> None:
            place = free.get()
            try:
                for attempt in range(1, ATTEMPTS + 1):
                    forget_failure(folder)
                    process = subprocess.Popen(
                        [sys.executable, "-m", "nnssl.study.execution.job", str(folder)],
                        env={**os.environ, **place},
                    )
                    processes.add(process)
                    if stopping:  # before this one could be seen
                        process.terminate()
                    status = process.wait()
                    processes.discard(process)
                    if stopping or settled(
                        folder, attempt, f"the process ended with status {status}", say
                    ):
                        return
            finally:
                free.put(place)

        with ThreadPoolExecutor(len(places)) as pool:
            try:
                for future in [pool.submit(one, folder) for folder in folders]:
                    future.result()
            except BaseException:  # Ctrl-C, SIGTERM: what runs is ended, and continues another time
                stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(processes):
                    process.terminate()
                raise

    return execute


def forget_failure(folder: Path) -> None:
    """Before another attempt."""
    if runs.state(folder)[0] == "failed":
        (folder / runs.OUTCOME).unlink()


def settled(folder: Path, attempt: int, otherwise: str, say: Say) -> bool:
    """Whether nothing is left to try. A job that ended without a word gets `otherwise` as its
    reason.
    """
    state, reason = runs.state(folder)
    if state == "done":
        say(f"  {folder.name}: done")
        return True
    if state == "missing":
        files.write_json(folder / runs.OUTCOME, {"state": "failed", "reason": otherwise})
        reason = otherwise
    first = (reason or otherwise).strip().splitlines()[0]
    if attempt < ATTEMPTS:
        say(f"  {folder.name}: failed, is tried once more ({first})")
        return False
    say(f"  {folder.name}: failed ({first}); {folder / runs.LOG} tells more")
    return True
