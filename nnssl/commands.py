"""Run commands of this project and of nnU-Net as subprocesses of the current Python."""

from __future__ import annotations

import os
import shlex
import signal
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

Command = list[str]
Wait = Callable[[subprocess.Popen], object]
WIDTH = 300  # characters of a log's line
TO_SAVE = 300.0  # seconds that a command may take to end, such as to save
TO_END = 5.0  # seconds that its helpers may take


class CommandError(RuntimeError):
    """A command failed or does not exist; the message says what failed and what to do next."""


def executable(command: Command) -> Command:
    """The console script of the current Python; without one (a source tree), our module. Raises
    CommandError where there is neither.
    """
    found = (folder / command[0] for folder in _script_folders())
    if script := next(filter(Path.exists, found), None):
        return [str(script), *command[1:]]
    if command[0].startswith("nnssl_"):
        return [sys.executable, "-m", "nnssl", command[0].removeprefix("nnssl_"), *command[1:]]
    searched = " or ".join(map(str, _script_folders()))
    raise CommandError(
        f"{command[0]} is not in {searched}, where the commands of {sys.executable} are; type: pip "
        "install nnunetv2"
    )


def _script_folders() -> list[Path]:
    """Where the console scripts of the current Python are: its own, then its user's."""
    schemes = [sysconfig.get_default_scheme()]
    if site.ENABLE_USER_SITE:  # pip install --user, as pip does where the own one is read-only
        schemes.append(sysconfig.get_preferred_scheme("user"))
    return [Path(sysconfig.get_path("scripts", scheme)) for scheme in schemes]


def child_environment() -> dict[str, str]:
    """The caller's, for a command of a chain: without a checkpoint that no plans name, and with
    figures that need no screen.
    """
    kept = {name: value for name, value in os.environ.items() if name != "nnssl_checkpoint"}
    # Threads that wait in a busy loop take the cores from nnU-Net's other processes, several times
    # over on two cores.
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, "MPLBACKEND": "Agg"}


def run_logged(
    command: Command,
    log: Path,
    environment: Mapping[str, str],
    wait: Wait = subprocess.Popen.wait,
    lock: int | None = None,
) -> int:
    """The status with which the command ended, all its output added to `log`. It is ended when
    `wait` is interrupted.

    However it ended, its helpers end too: nnU-Net's augmentation would wait for ever, and hold on
    to the lock.

    lock: a file descriptor that the child shares, and so holds on to should this process be killed.
    """
    with log.open("a", encoding="utf-8") as file:
        print(f"$ {shlex.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            executable(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[] if lock is None else [lock],
            start_new_session=True,
        )
        try:
            wait(process)
        finally:
            _terminate_process(process)
    return process.returncode


def _terminate_process(process: subprocess.Popen) -> None:
    """It may want to save something, with its helpers still there."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(TO_SAVE)
    _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    """End the remaining processes of a command, including those that ignore SIGTERM."""
    with suppress(ProcessLookupError, PermissionError):  # none is left, or (macOS) only dead ones
        _signal_group(process, signal.SIGTERM, TO_END)
        _signal_group(process, signal.SIGKILL, 0.0)
    process.wait()


def _signal_group(process: subprocess.Popen, number: int, patience: float) -> None:
    """Raises ProcessLookupError or PermissionError as soon as none is left."""
    deadline = time.monotonic() + patience
    os.killpg(process.pid, number)
    while time.monotonic() < deadline:
        process.poll()
        os.killpg(process.pid, 0)
        time.sleep(0.02)


def tail(log: Path, lines: int) -> str:
    """The last lines, cut to WIDTH; a progress bar's carriage returns count as line ends."""
    ends = _end_of(log).replace("\r", "\n").split("\n")
    said = [line.rstrip() for line in ends if line.strip()]
    return "\n".join(line[:WIDTH] for line in said[-lines:])


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return file.read().decode(errors="replace")
