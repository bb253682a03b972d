"""Being stopped: a cluster's notice, Ctrl-C or a lost terminal, heard between steps."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from nnssl import dist, signals


class Signals:
    """What asks a program to stop (signals.STOPS) becomes a question that the loop asks after each step."""

    def __enter__(self) -> Signals:
        self.received = False
        self.stack = ExitStack()
        self.stack.enter_context(signals.handled(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def asked(self) -> bool:
        """True on every process once any process was signalled."""
        if not dist.active():
            return self.received
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return float(dist.mean(torch.tensor(float(self.received), device=device))) > 0

    def _note(self, *_: object) -> None:
        self.received = True
