"""Stop requests (a cluster's signal, Ctrl-C or a lost terminal), handled between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import torch

from nnssl import dist, signals

GRACE = 10  # seconds; torchrun kills after 30
ALARM = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()

EVERY = 10


class Signals:
    """Turns the signals that stop a program (signals.STOPS) into a flag that the loop reads after
    each step.
    """

    def __enter__(self) -> Signals:
        self.received = self.waits = False
        self.stack = ExitStack()
        self.stack.enter_context(signals.handled(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, a signal raises Interrupted: what is waited for may never come.

        With several processes only after GRACE seconds, as the others may be in a step already.
        """
        with signals.handled(self._give_up, ALARM) if dist.is_initialized() else ExitStack():
            self.waits = True
            try:
                if self.received:
                    self._stop_waiting()
                yield
            finally:
                self.waits = False
                if dist.is_initialized() and ALARM:
                    signal.alarm(0)

    def stop_requested(self, step: int = 0) -> bool:
        """True on every process once any was signalled. On GPUs they agree every `EVERY` steps: it
        is a wait.
        """
        if not dist.is_initialized():
            return self.received
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        if device == "cuda" and step % EVERY:
            return False
        return float(dist.all_reduce_mean(torch.tensor(float(self.received), device=device))) > 0

    def _record(self, *_: object) -> None:
        self.received = True
        if self.waits:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if not dist.is_initialized():
            self._interrupt()
        if ALARM:
            signal.alarm(GRACE)

    def _give_up(self, *_: object) -> None:
        if self.waits:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        self.waits = False  # once: a second signal does not interrupt the save that follows
        raise signals.Interrupted
