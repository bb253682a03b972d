"""A lock that is waited for, and that a child process can share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Keep others out while the block lasts, as soon as the one who holds the lock at `path` has
    left; the descriptor of the lock. A child that shares it holds on to it should this process be
    killed.

    Raises OSError where the folder of `path` does not exist, cannot be written to or has no locks.
    """
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
