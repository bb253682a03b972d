"""Which files of a folder are its scans, where a pattern says so: `*/ct.nii.gz`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

EXAMPLES = 3


def checked_globs(patterns: Sequence[str]) -> tuple[str, ...]:
    """`patterns` as they are kept. Raises ValueError for one that cannot match within a folder."""
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(
                f"--pattern {pattern!r} is not a path within the folder of -i: write it relative "
                "to that folder, such as --pattern '*/ct.nii.gz' (* within a name, ** for any "
                "number of folders)"
            )
    return tuple(sorted({PurePosixPath(pattern).as_posix() for pattern in patterns}))


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path relative to the folder matches one of `patterns`, or there is none."""
    parts = path.split("/")
    return not patterns or any(_match(parts, PurePosixPath(p).parts) for p in patterns)


def _match(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match(path[first:], pattern[1:]) for first in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _match(path[1:], pattern[1:])


def nothing(folder: Path, patterns: Sequence[str], there: Iterable[str]) -> ValueError:
    """The error where nothing in `folder` matches; `there`: paths of what could be scans."""
    paths = [Path(path) for path in there]
    names = sorted(str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder))
    return ValueError(
        f"nothing in {folder} matches --pattern {' '.join(map(repr, patterns))}; "
        f"{_files_summary(names)}. Write it relative to that folder (* within a name, ** for any "
        "number of folders), or leave --pattern out"
    )


def _files_summary(names: Sequence[str]) -> str:
    if not names:
        return "it has no scan"
    examples = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
    return f"there are {len(names)} files or DICOM folders: {examples}"
