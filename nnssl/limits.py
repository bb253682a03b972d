"""What this process may use of its machine: batch systems and containers give less than all."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; version 1 says "no limit" by a number near 2^63


def cores() -> int:
    """Cores that this process may count on: by affinity, SLURM's --cpus-per-task and the cgroup's
    quota.
    """
    found = [_affinity(), *map(_cores_of, _folders("cpu"))]
    if (cores_of_slurm := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        found.append(int(cores_of_slurm))
    return max(1, min(each for each in found if each is not None))


def _cores_of(folder: Path) -> int | None:
    """Those that a cgroup's quota comes to; None without one."""
    quota, period = _quota(folder)
    return -(-int(quota) // int(period)) if quota.isdigit() and int(period) else None


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(folder: Path) -> list[str]:
    """A cgroup's quota and period in microseconds, of version 2 or 1; "max" where there is none."""
    return (
        _cgroup_words(folder / "cpu.max")
        or [
            *_cgroup_words(folder / "cpu.cfs_quota_us"),
            *_cgroup_words(folder / "cpu.cfs_period_us"),
        ]
        or ["max", "1"]
    )


def free_memory() -> int | None:
    """Bytes that this process's cgroups leave it; None where they set no limit."""
    free = map(_free_memory_of, _folders("memory"))
    return min((each for each in free if each is not None), default=None)


def _free_memory_of(folder: Path) -> int | None:
    """Bytes that the cgroup at `folder` still allows; None without a limit."""
    limit = _cgroup_number(folder / "memory.max") or _cgroup_number(
        folder / "memory.limit_in_bytes"
    )
    used = (
        _cgroup_number(folder / "memory.current")
        or _cgroup_number(folder / "memory.usage_in_bytes")
        or 0
    )
    if limit and limit < UNLIMITED:
        return max(0, limit - used + _reclaimable(folder))
    return None


def _reclaimable(folder: Path) -> int:
    """Bytes of the page cache, which count as used and are given back when they are needed."""
    words = _cgroup_words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=False))
    return int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))


def _folders(controller: str) -> list[Path]:
    """The cgroup of this process and those above it: of version 2, or of `controller` in 1."""
    found = []
    for number, controllers, path in _own_cgroups():
        if number == "0":
            found += _upwards(CGROUPS, path)
        elif controller in controllers.split(","):
            found += _upwards(CGROUPS / controller, path)
    return list(dict.fromkeys(found))


def _own_cgroups() -> list[list[str]]:
    """(number, controllers, path) of each hierarchy; none where there are no cgroups."""
    try:
        return [line.split(":", 2) for line in OWN.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []


def _upwards(top: Path, path: str) -> list[Path]:
    """From a cgroup up to `top`: in a container `path` is the host's, and `top` its own."""
    own = top / path.lstrip("/")
    return [own, *(above for above in own.parents if above.is_relative_to(top)), top]


def _cgroup_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []


def _cgroup_number(path: Path) -> int | None:
    words = _cgroup_words(path)
    return int(words[0]) if words and words[0].isdigit() else None
