"""nnU-Net's three folders: set, existing, and writable where something is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from nnssl import files
from nnssl.doctor.finding import Finding, note, ok, wrong
from nnssl.types import PREPROCESSED, RAW, RESULTS

LITTLE = 5  # GiB; a preprocessed dataset or the checkpoints of five folds are of that size


def folders() -> list[Finding]:
    return [_folder(RAW, written=False), _folder(PREPROCESSED), _folder(RESULTS)]


def _folder(variable: str, written: bool = True) -> Finding:
    export = f"export {variable}=/path/to/{variable}"
    if not os.environ.get(variable):
        return wrong(f"{variable} is not set", export)
    path = Path(os.environ[variable])
    if _is_hidden(path):
        return wrong(f"{variable}: {path} is below a folder that you may not enter", export)
    if not path.exists():
        return wrong(f"{variable}: folder {path} does not exist", f"mkdir -p {files.quoted(path)}")
    if not path.is_dir():
        return wrong(f"{variable}: {path} is not a folder", export)
    return _access(f"{variable}: {path}", path, written)


def _is_hidden(path: Path) -> bool:
    """Whether this user may not even see if it exists."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _access(says: str, path: Path, written: bool) -> Finding:
    """`says`: what it is called, and where it is."""
    if not os.access(path, os.R_OK | os.X_OK):
        return wrong(f"{says} is not readable", f"chmod u+rx {files.quoted(path)}")
    if not written:
        return ok(says)
    if (error := _cannot_write(path)) is not None:
        return wrong(
            f"{says} is not writable ({error.strerror})", f"chmod u+w {files.quoted(path)}"
        )
    return _space(f"{says}, writable", path)


def _space(says: str, path: Path) -> Finding:
    free = shutil.disk_usage(path).free / 2**30
    says = f"{says}, {free:.0f} GiB free"
    return note(f"{says}: little") if free < LITTLE else ok(says)


def _cannot_write(path: Path) -> OSError | None:
    """By trying: permissions alone say nothing of a read-only disk, or to root."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return None
    except OSError as error:
        return error
