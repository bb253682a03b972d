"""Scans of a plan that lie under another path now: the same below the folder that was given with
-i.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnssl.data.plan import Case, Plan
from nnssl.data.scans import Found


def moved_cases(
    plan: Plan, scans: Sequence[Found], roots: Sequence[Path | str]
) -> Iterator[tuple[Case, Found]]:
    """The cases whose source seems to lie elsewhere, and where."""
    moved = moved_sources(plan, scans, roots)
    for case in plan.cases:
        if case.source in moved:
            yield case, Found(moved[case.source], case.series)


def moved_sources(
    plan: Plan, scans: Sequence[Found], roots: Sequence[Path | str]
) -> dict[str, str]:
    """{source in the plan: where it may be now} of the sources that are not among `scans`.

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
