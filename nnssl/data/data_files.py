"""The files of voxels that a text header names, none of which leaves the header's own folder; and
what is wrong inside of them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from nnssl.data.refusals import UnusableScanError, summarise_error

DEFLATE = 1032  # the most that one byte can become, by the format
MOST_FILES = 100_000
NUMBERED = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")


def unreadable(words: str) -> UnusableScanError:
    return UnusableScanError(f"cannot be read: {words}")


@contextmanager
def compressed_damage() -> Iterator[None]:
    """What is wrong inside of compressed data becomes UnusableScanError."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise unreadable(
            f"its compressed data are damaged or truncated ({summarise_error(error)})"
        ) from error


def voxel_files(
    header: Path, end: int, named: str | None, following: Iterator[str]
) -> tuple[tuple[Path, ...], int]:
    """The files of voxels, and from which byte of the first: the header's own from its `end` on,
    or those that are `named`.
    """
    return ((header,), end) if named is None else (data_files(header, named, following), 0)


def data_files(header: Path, named: str, following: Iterator[str]) -> tuple[Path, ...]:
    """The data files that a header names: one, a list, or numbered ones."""
    names = _data_file_names(named, following)
    if not 0 < len(names) <= MOST_FILES:
        raise unreadable(f"its header names {len(names)} data files")
    return tuple(_inside_folder(header, name) for name in names)


def _data_file_names(named: str, following: Iterator[str]) -> list[str]:
    if named.startswith("LIST"):  # which MetaIO and NRRD take for a list whatever follows
        return [line.strip() for line in following if line.strip()]
    return _names_from_pattern(named) if "%" in named else [named]


def _names_from_pattern(named: str) -> list[str]:
    """The names of NAME%03d.raw FIRST LAST STEP; one more than MOST_FILES at most."""
    pattern, *bounds = _checked_words(named)
    first, last, step = map(int, bounds[:3])
    numbers = range(first, last + (1 if step > 0 else -1), step)
    return [pattern % number for number in numbers[: MOST_FILES + 1]]


def _checked_words(named: str) -> list[str]:
    """NAME%03d.raw and the numbers after it, of which there may be a fourth."""
    words = named.split()
    if len(words) not in (4, 5) or not NUMBERED.fullmatch(words[0]):
        raise unreadable(
            f"its data file is {named[:60]!r}, allowed are a name, LIST, or NAME%03d.raw FIRST "
            "LAST STEP"
        )
    return words


def _inside_folder(header: Path, name: str) -> Path:
    """A file of the header's own folder, or of one in it."""
    if _may_lead_out(name):
        raise unreadable(
            f"its header names the data file {name[:60]!r}, which is not in the header's own folder"
        )
    path = header.parent / name
    if not path.is_file():
        raise unreadable(f"its data file {name[:60]!r} does not exist")
    return path


def _may_lead_out(name: str) -> bool:
    """By an absolute path, by .., or by what MetaIO would take for a format."""
    is_absolute = bool(PureWindowsPath(name).anchor) or name.startswith("/")
    return "%" in name or is_absolute or ".." in re.split(r"[/\\]", name)
