"""The processes of a run, seen from outside, in /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def processes() -> Iterator[tuple[int, int, int]]:
    """Process, its group and its parent, of all that live; nothing where there is no /proc."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").rpartition(")")[2].split()
            if words[0] not in "ZX":
                yield int(path.parent.name), int(words[2]), int(words[1])


def children(run: int) -> list[int]:
    return [pid for pid, _, parent in processes() if parent == run]


def fork_servers(run: int) -> list[int]:
    """What starts the workers of a run."""
    return [pid for pid in children(run) if b"multiprocessing.forkserver" in _command_line(pid)]


def _command_line(process: int) -> bytes:
    """Its line; nothing of one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def grandchildren(run: int) -> list[int]:
    return [pid for child in children(run) for pid in children(child)]


def state(run: int) -> str:
    """The state of a process in /proc: Z for one that has ended and was not waited for."""
    try:
        return Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
