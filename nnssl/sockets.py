"""Give multiprocessing a short folder for its sockets, whose paths are limited in length."""

from __future__ import annotations

import multiprocessing.util
import os
import tempfile

# sun_path holds 108 bytes, of which multiprocessing puts this many behind the temporary folder.
SOCKET_PATH, SOCKET_NAME = 107, len("/pymp-12345678/listener-12345678")


def room_for_sockets() -> None:
    """Let multiprocessing put its sockets into a short folder where TMPDIR is too long for them.

    A socket's path has 107 bytes at most; folders of batch systems can be longer. Call before
    processes are started. Raises OSError where there is no short folder.
    """
    if os.name == "nt" or _holds_sockets(tempfile.gettempdir()):
        return
    before = tempfile.tempdir
    tempfile.tempdir = _short_folder()
    try:
        multiprocessing.util.get_temp_dir()  # made once; processes inherit it
    finally:
        tempfile.tempdir = before


def _short_folder() -> str:
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if folder and _holds_sockets(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(
        f"the path of the temporary folder {tempfile.tempdir} is too long for sockets, and no "
        "shorter one is writable; type: export TMPDIR=/a/short/folder"
    )


def _holds_sockets(folder: str) -> bool:
    return len(os.fsencode(folder)) + SOCKET_NAME <= SOCKET_PATH
