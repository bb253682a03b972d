"""Scans of a plan that have moved: the same path below another folder given with -i."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
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
    found, known = {scan.path for scan in scans}, {case.source for case in plan.cases}
    lost = known - found
    lost_by_end = _by_end(lost)
    moved = {}
    for root in roots:
        below = _below(Path(root).absolute(), sorted(found - known), lost_by_end)
        old = _old_root(below.values(), lost_by_end)
        moved |= {old + end: path for path, end in below.items() if old + end in lost}
    return moved


def _below(root: Path, paths: Iterable[str], ends: Container[str]) -> dict[str, str]:
    """{path: what follows the root} of those whose end is one of `ends`."""
    relative = {path: _relative(path, root) for path in paths}
    return {path: end for path, end in relative.items() if end in ends}


def _by_end(paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths by each of their ends, from one name on."""
    by_end = defaultdict(list)
    for path in paths:
        names = Path(path).parts
        for first in range(1, len(names)):
            by_end["/".join(names[first:])].append(path)
    return by_end


def _old_root(ends: Iterable[str], lost_by_end: dict[str, list[str]]) -> str:
    """The folder below which most of the lost paths with these ends were; the first of several."""
    counts = Counter(source[: -len(end)] for end in ends for source in lost_by_end[end])
    return min(counts, key=lambda old: (-counts[old], old), default="")


def _relative(path: str, root: Path) -> str:
    """With `/`, as in the plan; of a root that is a file or the scan's own folder, its name."""
    if Path(path) == root:
        return root.name
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else ""
