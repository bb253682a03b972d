"""Stop requests (a cluster's signal, Ctrl-C or a lost terminal), handled between steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as td

from nnssl import dist, signals

T = TypeVar("T")


class Signals:
    """Turns the signals that stop a program (signals.STOPS) into a flag that the loop reads before
    each step.

    gave_up: whether a wait was ended by a signal: what was waited for may never come.
    """

    def __enter__(self) -> Signals:
        self.received = self.waits = self.gave_up = False
        # not the backend of a GPU: the host would wait for all steps before
        self.group = td.new_group(backend="gloo") if dist.is_initialized() else None
        self.stack = ExitStack()
        self.stack.enter_context(signals.handled(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def wait_for(self, what: Callable[[], T]) -> T | None:
        """What `what` returns; None after a signal, which ends the wait."""
        if self.received:
            return None
        try:
            return self._while_waiting(what)
        except signals.Interrupted:
            self.gave_up = True
            return None

    def _while_waiting(self, what: Callable[[], T]) -> T:
        self.waits = True
        try:
            if self.received:
                self._interrupt()
            return what()
        finally:
            self.waits = False

    def stop_requested(self) -> bool:
        """True on every process once any was signalled. Each calls it before each step, with its
        batch or without: none enters a step that another does not.
        """
        if self.group is None:
            return self.received
        flag = torch.tensor(int(self.received))
        # a number only where a process is no member
        td.all_reduce(flag, td.ReduceOp.MAX, cast("td.ProcessGroup", self.group))
        return bool(flag)

    def _record(self, *_: object) -> None:
        self.received = True
        if self.waits:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        self.waits = False  # once: a second signal does not interrupt the save that follows
        raise signals.Interrupted
