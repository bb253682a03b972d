"""Signals: which process handles them. A handler belongs to the process that set it; its forks end
as usual.

A forked child would inherit the handlers of its parent, and what is ignored even outlives an exec.
A pool whose workers are deaf to SIGTERM in this way never ends: `Pool.terminate` sends it and
waits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# A cluster's notice, Ctrl-C, a lost terminal, SLURM's --signal=USR1 and submitit's USR2. Windows
# has the first two.
STOPS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)  # fmt: skip
# `nohup` and a shell's `&` say by ignoring these that the command shall outlive them.
ASKED_TO_IGNORE = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)
)

MEANS = {
    "SIGKILL": ", most likely out of memory",
    "SIGSEGV": ", a crash within a library",
    "SIGABRT": ", a crash within a library",
    "SIGFPE": ", a crash within a library",
    "SIGILL": ", a crash within a library",
    "SIGBUS": ", most likely no room in /dev/shm, or a disk that does not respond",
}

Handler = Callable[[int, "FrameType | None"], object]

_ours: set[int] = set()  # what this process handles; a forked child begins with none of it
_thread = threading.local()


class Interrupted(BaseException):
    """The run was asked to stop; `--c` continues. Like KeyboardInterrupt, not caught by `except
    Exception`.
    """


def how_ended(exitcode: int | None) -> str:
    """For a process that has ended: the signal's name and its usual cause."""
    if exitcode is None or exitcode >= 0:
        return f"ended with status {exitcode}" if exitcode else "ended"
    name = _signal_name(-exitcode)
    return f"was ended by {name}{MEANS.get(name, '')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def handled(handler: Handler, numbers: Sequence[int] = STOPS) -> Iterator[None]:
    """Let `handler` of this process hear `numbers`, and put back what was there.

    Nothing is heard in a thread other than the main one, where Python allows no handlers, nor what
    the caller of this program ignores (`nohup`).
    """
    before, outer = {}, set(_ours)
    if threading.current_thread() is threading.main_thread():
        for number in filter(_is_heard, numbers):
            before[number] = _set(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)
        _ours.intersection_update(outer)


def _is_heard(number: int) -> bool:
    """Whether the caller of this program does not ignore it."""
    return number not in ASKED_TO_IGNORE or signal.getsignal(number) is not signal.SIG_IGN


def disregard(numbers: Sequence[int] = STOPS) -> None:
    """From now on this process takes no notice of `numbers`: another one decides when it ends.

    By a handler: what is ignored (SIG_IGN) would be so in every program that it starts.
    """
    for number in numbers:
        _set(number, lambda *_: None)


def _set(number: int, handler: Handler) -> Handler | int | None:
    _ours.add(number)
    return signal.signal(number, handler)


def _before_fork() -> None:
    """Python forgets a signal that comes before a new child can hear it; blocked it waits."""
    _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours) if _ours else None


def _in_parent() -> None:
    if _thread.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _thread.mask)


def _in_child() -> None:
    for number in _ours:
        signal.signal(number, signal.SIG_DFL)
    _ours.clear()
    _in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
