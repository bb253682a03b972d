"""Work in several processes continues, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from nnssl.data.workers import Failed, parallel_map


def work(item: int) -> int:
    """Doubles; but 3 kills its process as the kernel does for want of memory, 4 crashes, 5
    raises.
    """
    if item in (3, 4):
        os.kill(os.getpid(), signal.SIGKILL if item == 3 else signal.SIGSEGV)
    if item == 5:
        raise ValueError("five")
    return 2 * item


def test_a_killed_worker_costs_its_item_alone():
    results = dict(parallel_map(work, list(range(7)), 2, "test"))
    assert results.pop(3) == Failed(
        "its worker was ended by SIGKILL, most likely out of memory; fewer workers (-np) leave "
        "more memory for each"
    )
    assert results.pop(4) == Failed("its worker was ended by SIGSEGV, a crash within a library")
    assert results.pop(5) == Failed("five")
    assert results == {item: 2 * item for item in (0, 1, 2, 6)}


def test_a_fork_server_that_is_killed_costs_nothing(monkeypatch):
    """It may be the largest process; starting a worker then ends in an EOFError."""
    submit, calls = ProcessPoolExecutor.submit, []

    def submitted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # after the pool's own and the first item's
            raise EOFError("unexpected EOF")
        return submit(*arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submitted)
    assert dict(parallel_map(abs, [-1, -2, -3], 1, "test")) == {-1: 1, -2: 2, -3: 3}


def test_one_process_gives_the_same():
    assert dict(parallel_map(work, [1, 2, 5], 0, "test")) == {1: 2, 2: 4, 5: Failed("five")}
    assert list(parallel_map(work, [], 2, "test")) == []


def test_workers_that_cannot_start_are_an_error_and_not_blamed_on_the_items():
    script = (
        "from nnssl.data.workers import parallel_map; print(dict(parallel_map(len, ['a'], 1, "
        "'test')))"
    )
    run = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, encoding="utf-8", timeout=60
    )
    assert run.returncode == 1
    assert "RuntimeError: worker processes cannot start" in run.stderr


def sleep(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import sleep
from nnssl.data.workers import parallel_map
if __name__ == "__main__":
    list(parallel_map(sleep, [{folder!r}], 1, "test"))
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    (tmp_path / "pids").mkdir()
    script.write_text(
        PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "pids"))
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        not (pids := [int(path.name) for path in (tmp_path / "pids").iterdir()])
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline and _alive(pids[0]):
        time.sleep(0.05)
    assert not _alive(pids[0])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that init has not collected yet is dead too.
    return (
        "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        if Path("/proc").is_dir()
        else True
    )


def test_workers_end_when_their_results_are_not_wanted_any_more(tmp_path):
    """As when a signal raises where they are waited for, and something holds on to the frame."""

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    def when_it_works() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, stop)
    threading.Thread(target=when_it_works, daemon=True).start()
    try:
        with (
            closing(parallel_map(sleep, [str(tmp_path)], 1, "test")) as results,
            pytest.raises(Stop),
        ):
            next(results)
    finally:
        signal.signal(signal.SIGALRM, before)
    (worker,) = tmp_path.iterdir()
    assert not _alive(int(worker.name))
