"""Being stopped: a cluster's notice and Ctrl-C, heard between steps."""

from __future__ import annotations

import signal

import torch

from nnssl import dist

EVERY = 10


class Signals:
    """SIGTERM (a cluster's notice) and SIGINT (Ctrl-C) become a question that the loop asks after each step."""

    def __enter__(self) -> Signals:
        self.received = False
        try:
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread, where Python allows no handlers
            self.before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def asked(self, step: int = 0) -> bool:
        """True on every process once any was signalled. On GPUs they agree every `EVERY` steps: it is a wait."""
        if not dist.active():
            return self.received
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        if device == "cuda" and step % EVERY:
            return False
        return float(dist.mean(torch.tensor(float(self.received), device=device))) > 0

    def _note(self, *_: object) -> None:
        self.received = True
