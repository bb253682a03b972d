"""Files that are whole or absent: atomic writes, JSON, hashes, and names that stay in their folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it there, on error remove it.

    The temporary keeps the suffixes of `path`, since writers such as blosc2 and matplotlib look at them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.name, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; results are shared like any other file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> dict:
    """Raises ValueError, naming the file, when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def append_json_line(path: Path | str, row: dict) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_json_lines(path: Path | str, rows: list[dict]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json_lines(path: Path | str) -> list[dict]:
    """All rows; a last line cut short by a kill is left out, and so are blank lines.

    Raises ValueError, naming file and line, where an earlier line is damaged: what follows it would be lost.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = []
    for number, line in numbered:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number != numbered[-1][0]:
            raise ValueError(
                f"{path}, line {number} is damaged: {line[:60]!r} is not one row of JSON. Put an older copy of the "
                "file back, or take that line out"
            )
    return rows


def fingerprint(value: object) -> str:
    """Twelve hex digits that change when the JSON of `value` changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def sha256(path: Path | str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def inside(folder: Path | str, name: str) -> Path:
    """`folder/name`, refused with ValueError when `name` would lead out of `folder`."""
    folder = Path(folder).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the name {name!r} leads out of its folder {folder}")
    return path
