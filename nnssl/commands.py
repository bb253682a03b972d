"""The commands of this project and of nnU-Net, as other processes of this very Python."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

Command = list[str]
Wait = Callable[[subprocess.Popen], object]
WIDTH = 300  # characters of a log's line


class CommandError(RuntimeError):
    """A command failed or is not there; the message is for the user: what failed, and what to do next."""


def executable(command: Command) -> Command:
    """The console script of this very Python; without one (a source tree), our module."""
    script = Path(sysconfig.get_path("scripts")) / command[0]
    if script.exists():
        return [str(script), *command[1:]]
    if command[0].startswith("nnssl_"):
        return [sys.executable, "-m", "nnssl", command[0].removeprefix("nnssl_"), *command[1:]]
    raise CommandError(f"{command[0]} is not installed beside {sys.executable}; type: pip install nnunetv2")


def run_logged(
    command: Command,
    log: Path,
    environment: Mapping[str, str],
    wait: Wait = subprocess.Popen.wait,
    lock: int | None = None,
) -> int:
    """The status with which the command ended, all its output added to `log`. It is ended when `wait` is interrupted.

    However it ended, its helpers end too: nnU-Net's augmentation would wait for ever, and hold on to the lock.

    lock: a file descriptor that the child shares, and so holds on to should this process be killed.
    """
    with log.open("a", encoding="utf-8") as file:
        print(f"$ {shlex.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            executable(command), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
            pass_fds=[] if lock is None else [lock], start_new_session=True,
        )  # fmt: skip
        try:
            wait(process)
        finally:
            if process.poll() is None:  # it may want to save something, with its helpers still there
                process.terminate()
                process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    return process.returncode


def tail(log: Path, lines: int) -> str:
    """The last lines, cut to WIDTH; a progress bar's carriage returns count as line ends."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    said = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return "\n".join(line[:WIDTH] for line in said[-lines:])
