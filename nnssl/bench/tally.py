"""How many faults a campaign has done, and how many were survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnssl.bench import markdown
from nnssl.bench.trials import Lost


@dataclass
class Tally:
    """How many of each fault were done and survived, in so many rounds."""

    done: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    def add(self, fault: str, count: int, lost: Lost | None) -> None:
        """A round, in which so many were done; one that was lost is printed."""
        self.done[fault] += count
        if lost:
            print(f"\nLOST, number {self.rounds}, {fault}: {lost}", flush=True)
        else:
            self.survived[fault] += count
        self.rounds += 1

    def table(self, faults: Sequence[str]) -> str:
        rows = [(fault, self.done[fault], self.survived[fault]) for fault in faults]
        rows.append((f"all, in {self.rounds} rounds", self.done.total(), self.survived.total()))
        return markdown.pipe_table(("fault", "done", "survived"), rows)
