"""A handler of ours is heard by the process that set it, and keeps no child of it from ending."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from nnssl import signals
from nnssl.data import workers
from nnssl.study.execution import job, orchestrate
from nnssl.train import batches
from nnssl.train.stopping import Signals

LONGEST = 20  # seconds after which a child does not end any more
Act = Callable[[], object]

# Each does `act` where one of our handlers is set, as the program itself sets it.


def within_a_study(monkeypatch, act: Act) -> None:
    monkeypatch.setattr(orchestrate, "prepare_runs", lambda *_: act() or [])
    monkeypatch.setattr(orchestrate.collect, "collect", lambda _: {})
    orchestrate.run(None, lambda *_: None, lambda _: None)


def within_a_job(monkeypatch, act: Act) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "folder"])
    monkeypatch.setattr(job, "run_job", lambda _: act() or {"state": "done"})
    assert job.main() == 0


def within_the_loop(_, act: Act) -> None:
    with Signals():
        act()


def within_a_reader(monkeypatch, act: Act) -> None:
    monkeypatch.setattr(batches.torch, "set_num_threads", lambda _: None)
    in_a_child(lambda: (batches._quiet_worker(0), act()))


def within_a_worker(monkeypatch, act: Act) -> None:
    monkeypatch.setattr(workers, "_leave_with_parent", lambda: None)
    in_a_child(lambda: (workers._start_worker(), act()))


def in_a_child(act: Act) -> None:
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def ended_by(number: int) -> int:
    """The signal that ended a forked child that was sent `number`; -1 where it had to be killed."""
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(60)
    os.kill(child, number)
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def children_end() -> None:
    for number in signals.STOPS:
        if signal.getsignal(number) is not signal.default_int_handler:
            assert ended_by(number) == number


OURS = [within_a_study, within_a_job, within_the_loop, within_a_reader, within_a_worker]


@pytest.mark.parametrize("ours", OURS, ids=lambda one: one.__name__)
def test_a_forked_child_ends_by_the_signals_that_we_handle(ours, monkeypatch):
    ours(monkeypatch, children_end)


def test_a_program_that_a_reader_starts_ignores_nothing(monkeypatch):
    code = (
        "import signal, sys; sys.exit(any(signal.getsignal(n) is signal.SIG_IGN for n in (15, 2, "
        "1)))"
    )

    def act() -> None:
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0

    within_a_reader(monkeypatch, act)


@pytest.mark.parametrize("ours", [within_a_study, within_the_loop], ids=lambda one: one.__name__)
def test_a_pool_that_is_forked_under_our_handler_ends(ours, monkeypatch):
    """T10: as nnU-Net's pools do: terminate() sends SIGTERM and waits for the workers to end."""

    def act() -> None:
        pool = multiprocessing.get_context("fork").Pool(1)
        assert pool.apply(abs, (-1,)) == 1
        ending = threading.Thread(target=pool.terminate, daemon=True)
        ending.start()
        ending.join(LONGEST)
        hangs = ending.is_alive()
        for worker in multiprocessing.active_children():
            worker.kill()
        assert not hangs

    ours(monkeypatch, act)


def test_handlers_are_handed_back_and_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heard = []
        with signals.handled(lambda number, _: heard.append(number)):
            for number in signals.STOPS:
                signal.raise_signal(number)
        assert heard == [number for number in signals.STOPS if number != signal.SIGHUP]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not signals._ours
    finally:
        signal.signal(signal.SIGHUP, before)
