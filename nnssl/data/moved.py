"""Scans of a plan that have moved: the same path below another folder given with -i."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
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

    roots: the folders that were searched. The folder that holds them all, and then each of them,
    stands for that folder of old below which most of its scans had the same relative path; names
    above that are the same count as well. Where two have as many, nothing is matched. What else was
    in that folder of old is gone, and no other root stands for it. A source that is found where it
    was is not moved.
    """
    found, known = {scan.path for scan in scans}, {case.source for case in plan.cases}
    new, lost = found - known, known - found
    lost_by_end = _by_end(lost)
    moved = {}
    for below in _below_each(roots, new):
        ends = {end: path for path, end in below.items() if path in new and end in lost_by_end}
        old = _old_root(ends, lost_by_end, lost)
        same = {old + end: path for end, path in ends.items() if old + end in lost}
        moved |= same
        new -= set(same.values())
        lost -= {source for source in lost if same and source.startswith(old)}
    return moved


def _below_each(roots: Sequence[Path | str], paths: Iterable[str]) -> list[dict[str, str]]:
    """{path: what follows the root} of those below the folder that holds all `roots`, and below
    each of these. With `/`, as in the plan; of a root that is a file or the scan's own folder, its
    name.
    """
    tops = [str(Path(root).absolute()) for root in roots]
    below: dict[str, dict[str, str]] = {top: {} for top in (os.path.commonpath(tops), *tops)}
    for path in paths:
        for folder in (Path(path), *Path(path).parents):
            if (ends := below.get(str(folder))) is not None:
                end = Path(path).relative_to(folder).as_posix()
                ends[path] = folder.name if end == "." else end
    return list(below.values())


def _by_end(paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths by each of their ends, from one name on."""
    by_end = defaultdict(list)
    for path in paths:
        for end in _path_ends(path):
            by_end[end].append(path)
    return by_end


def _path_ends(path: str) -> Iterator[str]:
    """The longest first, without the root of all folders."""
    names = Path(path).parts
    return ("/".join(names[first:]) for first in range(1, len(names)))


def _old_root(
    ends: Mapping[str, str], lost_by_end: Mapping[str, list[str]], lost: Container[str]
) -> str:
    """The folder below which most of the `lost` paths were that end as the paths in `ends` do; ""
    where there is not one.
    """
    counts = Counter(
        source[: -len(end)]
        for end, path in ends.items()
        for source in _most_alike(path, end, lost_by_end, lost)
    )
    first, second = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return first[0] if first[1] > second[1] else ""


def _most_alike(
    path: str, end: str, lost_by_end: Mapping[str, list[str]], lost: Container[str]
) -> list[str]:
    """The `lost` paths that have the longest end in common with `path`, at least `end`."""
    for longer in _path_ends(path):
        found = [source for source in lost_by_end.get(longer, ()) if source in lost]
        if found or longer == end:
            return found
    return []
