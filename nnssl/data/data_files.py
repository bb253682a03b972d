"""The files of voxels that a text header names; none of them leaves the header's own folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from nnssl.data.refusals import UnusableScanError

MOST_FILES = 100_000
NUMBERED = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")


def unreadable(words: str) -> UnusableScanError:
    return UnusableScanError(f"cannot be read: {words}")


def data_files(header: Path, named: str, following: Iterator[str]) -> tuple[Path, ...]:
    """The data files that a header names: one, a list, or numbered ones."""
    if named.startswith("LIST"):  # which MetaIO and NRRD take for a list whatever follows
        names = [line.strip() for line in following if line.strip()]
    elif "%" in named:
        names = _numbered(named)
    else:
        names = [named]
    if not 0 < len(names) <= MOST_FILES:
        raise unreadable(f"its header names {len(names)} data files")
    return tuple(_beside(header, name) for name in names)


def _numbered(named: str) -> list[str]:
    """The names of NAME%03d.raw FIRST LAST STEP; one more than MOST_FILES at most."""
    words = named.split()
    if len(words) not in (4, 5) or not NUMBERED.fullmatch(words[0]):
        raise unreadable(
            f"its data file is {named[:60]!r}, allowed are a name, LIST, or NAME%03d.raw FIRST "
            "LAST STEP"
        )
    first, last, step = map(int, words[1:4])
    numbers = range(first, last + (1 if step > 0 else -1), step)
    return [words[0] % number for number in numbers[: MOST_FILES + 1]]


def _beside(header: Path, name: str) -> Path:
    """A file of the header's own folder, or of one in it."""
    is_absolute = PureWindowsPath(name).anchor or name.startswith("/")
    if "%" in name or is_absolute or ".." in re.split(r"[/\\]", name):
        raise unreadable(
            f"its header names the data file {name[:60]!r}, which is not in the header's own folder"
        )
    path = header.parent / name
    if not path.is_file():
        raise unreadable(f"its data file {name[:60]!r} is not there")
    return path
