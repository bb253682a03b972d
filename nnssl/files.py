"""Complete or absent files: atomic writes, JSON, blocks, hashes, names that stay in a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from nnssl import json_text

if TYPE_CHECKING:
    import bz2
    import gzip

try:
    import fcntl
    import resource
except ImportError:  # Windows: no lock, no limits
    fcntl = resource = None

TEMPORARY = ".tmp-"
STALE = 3600.0  # seconds after which a temporary file belongs to no living process
LOCK = ".lock"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
BLOCK = 1 << 20  # bytes that are read at once; divisible by the size of every voxel type
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of what is not there, and of broken links
LITTLE = 1 << 20  # bytes: with less room on a disk, a writer's failure is for want of it
NEARLY = 0.9  # of the largest file that may be written: a library may buffer the rest
_SORTED = json.JSONEncoder(sort_keys=True)


class NoRoomError(OSError):
    """The disk or quota is full, or the disk is read-only: nothing can be written there."""


class LockedError(RuntimeError):
    """Another process works on this folder."""


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it there, on error remove it.

    The temporary keeps the suffixes of `path`, since writers such as blosc2 and matplotlib look at
    them. It is flushed before the move: after a power cut the old file exists, or the new one.
    Raises NoRoomError, which names the file and the folder, where the disk is full or read-only.
    """
    path = Path(path)
    with _room_named(path):
        temporary = _temporary_beside(path)
    try:
        with _room_named(path, temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _make_readable(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.name, dir=path.parent)
    os.close(handle)
    return Path(name)


@contextmanager
def _room_named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Inside, an error for want of room becomes a NoRoomError. `temporary`: what is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # PyTorch and blosc2 raise RuntimeError
        if clearer := _no_room(error, path, temporary or path):
            raise clearer from error
        raise


def _make_readable(path: Path) -> None:
    """Give a file the usual permissions: those of mkstemp let only its owner read it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _no_room(error: Exception, path: Path, written: Path) -> NoRoomError | None:
    """The error where `path` could not be written for want of room; None for another cause."""
    number, free = _error_number(error, written), _free(path.parent)
    is_full = free is not None and free <= LITTLE
    if isinstance(error, NoRoomError) or not (number in NO_ROOM or is_full):
        return None
    return NoRoomError(
        f"{path} cannot be written: {_cause(number, free)}. Free some space for {path.parent}, or "
        "choose another disk (nnUNet_preprocessed, nnUNet_results, -o); files written before are "
        "complete"
    )


def _error_number(error: Exception, written: Path) -> int | None:
    """Its errno. Library errors for a refused write have none; where the file `written` so far
    nearly is as large as it may be, it was too large.
    """
    number, largest = getattr(error, "errno", None), _largest_file()
    if number is not None or largest is None or not is_file(written):
        return number
    return errno.EFBIG if written.stat().st_size > NEARLY * largest else None


def _free(folder: Path) -> int | None:
    """Bytes; None where they are unknown."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _cause(number: int | None, free: int | None) -> str:
    if number == errno.EFBIG:
        return f"the file would be larger than the limit{_limit()}"
    if number == errno.EROFS:
        return "the disk is read-only"
    left = "" if free is None else f", {free / 1e6:.1f} MB are left"
    return f"the disk is full or the quota used up{left}"


def _limit() -> str:
    largest = _largest_file()
    return "" if largest is None else f" of {largest / 1e6:.1f} MB (ulimit -f)"


def _largest_file() -> int | None:
    """Bytes of the largest file that this process may write; None without a limit."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def sweep(*folders: Path | str, older: float = 0.0) -> None:
    """Remove the temporary files of killed writes that are `older` seconds old.

    Not in folders within these: they may be another's, who is writing. Another process may move or
    remove the files at the same time.
    """
    for folder in folders:
        for name in names_in(folder):
            if name.startswith(TEMPORARY):
                path = Path(folder, name)
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > older:
                        path.unlink()


@contextmanager
def locked(folder: Path | str, hint: str) -> Iterator[None]:
    """Keep other processes, also of other machines, from `folder` while the block lasts.

    The lock ends with this process, however it ends; forked children do not hold it. Raises
    LockedError, which names the host and the process that hold it, and ends with `hint`.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise LockedError(f"{folder} is being written by {_holder(file)}: {hint}") from None
        with _room_named(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def _lock(file: TextIO) -> None:
    """Raises BlockingIOError or PermissionError where another process holds it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # a network disk without locks
        pass


def write_json(path: Path | str, value: object) -> None:
    """As it goes along: the text of a list or dict with many items right in `value` is never in
    memory as a whole.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json_text.encoded_chunks(value))
        file.write("\n")


def read_json(path: Path | str) -> dict:
    """Raises ValueError, naming the file, when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def append_json_line(path: Path | str, row: dict) -> None:
    """Raises NoRoomError where the disk is full or read-only."""
    with _room_named(Path(path)), Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_json_lines(path: Path | str, rows: list[dict]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json_lines(path: Path | str, whole: bool = False) -> list[dict]:
    """All rows; a last line truncated by a kill is left out, and so are blank lines.

    whole: the file was written at once, so that its last line is not one that a kill cut short.
    Raises ValueError, naming file and line, where an earlier line is damaged: what follows it would
    be lost.
    """
    numbered, rows = _numbered_lines(Path(path)), []
    for number, line in numbered:
        row = _json_row(line)
        if row is not None:
            rows.append(row)
        elif whole or number != numbered[-1][0]:
            raise ValueError(
                f"{path}, line {number} is damaged: {line[:60]!r} is not one JSON object. Restore "
                "an older copy of the file, or delete that line"
            )
    return rows


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    """All but the blank ones, from 1."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def fingerprint(value: object) -> str:
    """Twelve hex digits that change when the JSON of `value` changes."""
    return hashlib.sha256(_SORTED.encode(value).encode()).hexdigest()[:12]


def sha256(path: Path | str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()


def crc32(path: Path | str) -> int:
    """The checksum of a whole file: for faults of disks, not against people."""
    value = 0
    with Path(path).open("rb") as file:
        for block in blocks(file):
            value = zlib.crc32(block, value)
    return value


def blocks(file: BinaryIO | gzip.GzipFile | bz2.BZ2File) -> Iterator[bytes]:
    """What is left of `file`, so that it need not fit into memory; the last block may be
    shorter.
    """
    while block := file.read(BLOCK):
        yield block


def names_in(folder: Path | str) -> set[str]:
    """The entries of `folder`, by one listing; none if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()


def is_file(path: Path | str) -> bool:
    """Not, either, where this user may not look: `Path.is_file` raises there before Python 3.14."""
    return os.path.isfile(path)  # noqa: PTH113


def exists(path: Path | str) -> bool:
    """Not, either, where this user may not look, as in `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def quoted(path: Path | str) -> str:
    """As a shell takes it, for commands in messages."""
    return shlex.quote(str(path))


def inside(folder: Path | str, name: str) -> Path:
    """`folder/name`, refused with ValueError when `name` would lead out of `folder`, itself or as a
    link.
    """
    joined = os.path.join(folder, name)  # noqa: PTH118 - called for each of a million scans
    if _is_plain(name) and not os.path.islink(joined):  # noqa: PTH114 - to resolve takes minutes
        return Path(joined)
    folder = Path(folder).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the name {name!r} leads out of its folder {folder}")
    return path


def _is_plain(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & set("/\\:")
