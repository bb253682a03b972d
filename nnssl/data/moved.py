"""Scans of a plan that lie under another path now: the same below the folder that was given with -i."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnssl.data.plan import Plan
from nnssl.data.scans import Found


def moved_sources(plan: Plan, scans: Sequence[Found], roots: Sequence[Path | str]) -> dict[str, str]:
    """{source in the plan: where it is now} of the sources that are no longer where the plan says.

    roots: the folders that were searched; each stands for that folder of old below which most of
    its scans had the same relative path. A source that is found where it was is not moved.
    """
    found = {scan.path for scan in scans}
    lost = {case.source for case in plan.cases} - found
    by_end = defaultdict(list)  # every end of a lost path, from one name on
    for source in lost:
        names = Path(source).parts
        for first in range(1, len(names)):
            by_end["/".join(names[first:])].append(source)
    known = {case.source for case in plan.cases}
    moved = {}
    for root in map(Path, roots):
        root = root.absolute()
        below = {path: _relative(path, root) for path in sorted(found - known)}
        below = {path: end for path, end in below.items() if end in by_end}
        olds = Counter(source[: -len(end)] for end in below.values() for source in by_end[end])
        for old, _ in sorted(olds.items(), key=lambda item: (-item[1], item[0]))[:1]:
            moved |= {old + end: path for path, end in below.items() if old + end in lost}
    return moved


def _relative(path: str, root: Path) -> str:
    """With `/`, as in the plan; of a root that is a file or the scan's own folder, its name."""
    if Path(path) == root:
        return root.name
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else ""
