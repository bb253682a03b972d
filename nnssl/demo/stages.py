"""Run the demo: one folder, one stage after another, each command's output in a log, and the time
of each.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nnssl import signals
from nnssl.commands import Command, CommandError, child_environment, run_logged, tail
from nnssl.demo.chain import ChainStage, Demo
from nnssl.files import read_json, write_json
from nnssl.types import PREPROCESSED, RAW, RESULTS

MARKER = "nnssl_demo.json"  # its presence says that the folder is the demo's to write in
OURS = ("scans", RAW, PREPROCESSED, RESULTS, "predictions", "logs")
LINES = 25  # of the log, shown when a command fails


class DemoError(CommandError):
    """A stage failed; the message says what failed and what to do next."""


def run(demo: Demo) -> dict[str, float]:
    """Every stage that is not finished yet; returns the seconds of each.

    Raises DemoError, with the end of the log, when a command fails, and for a folder that is not
    the demo's; Interrupted on a signal, when the running command has ended.
    """
    with signals.handled(_interrupt):
        finished = open_folder(demo)
        _print_variables(demo)
        stages = demo.stages()
        for number, stage in enumerate(stages, start=1):
            print(f"\n[{number}/{len(stages)}] {stage.title}", flush=True)
            _finish(stage, demo, finished)
    return finished


def _interrupt(*_: object) -> None:
    # A command runs in its own session and would write on, into folders that the next demo clears.
    raise signals.Interrupted("stopped; the same nnssl_demo command continues from there")


def _finish(stage: ChainStage, demo: Demo, finished: dict[str, float]) -> None:
    """Run it, unless it is in `finished`, and put it there."""
    if stage.name in finished:
        print(f"    already finished in {finished[stage.name]:.0f} s")
        return
    finished[stage.name] = round(run_stage(stage, demo), 1)
    _mark(demo, finished)
    print(f"    {finished[stage.name]:.0f} s")


def _print_variables(demo: Demo) -> None:
    print(f"The demo works in {demo.folder}, as if you had typed:\n")
    for name, folder in demo.variables.items():
        print(f"    export {name}={shlex.quote(folder)}")


def _mark(demo: Demo, finished: dict[str, float]) -> None:
    write_json(demo.folder / MARKER, {"settings": demo.settings(), "finished": finished})


def open_folder(demo: Demo) -> dict[str, float]:
    """Make the folder, or find what earlier runs with the same settings finished; other settings
    start afresh.
    """
    finished = _finished_earlier(demo)
    if not finished:
        clear(demo.folder, OURS)
    for name in OURS:
        (demo.folder / name).mkdir(parents=True, exist_ok=True)
    _mark(demo, finished)
    return finished


def _finished_earlier(demo: Demo) -> dict[str, float]:
    """The seconds of each stage; raises DemoError for a folder that is not the demo's."""
    marker = demo.folder / MARKER
    if not marker.is_file():
        _require_empty(demo.folder)
        return {}
    earlier = read_json(marker)
    return earlier["finished"] if earlier["settings"] == demo.settings() else {}


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(
            f"{folder} is neither empty nor a demo folder; give a new one: nnssl_demo -o FOLDER"
        )


def clear(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def run_stage(stage: ChainStage, demo: Demo) -> float:
    """The stage from its start; returns its seconds."""
    started = time.perf_counter()
    clear(demo.folder, stage.makes)
    if callable(stage.work):
        stage.work()
    else:
        _execute_all(stage.work, demo, f"{stage.name.replace(' ', '_')}.log")
    return time.perf_counter() - started


def _execute_all(commands: list[Command], demo: Demo, log_name: str) -> None:
    log = demo.folder / "logs" / log_name
    log.unlink(missing_ok=True)
    for command in commands:
        print(f"    $ {shlex.join(command)}", flush=True)
        execute(command, log, environment(demo))


def environment(demo: Demo) -> dict[str, str]:
    """`child_environment`, with nnU-Net's variables turned to the demo's folder."""
    return {**child_environment(), **demo.processes, **demo.variables}


def execute(command: Command, log: Path, variables: dict[str, str]) -> None:
    """Run with all output in `log`; raises DemoError when the command fails."""
    if status := run_logged(command, log, variables, wait=lambda process: follow(process, log)):
        raise _command_error(command, status, log)


def _command_error(command: Command, status: int, log: Path) -> DemoError:
    return DemoError(
        f"this command ended with status {status}:\n\n    {shlex.join(command)}\n\nThe last lines "
        f"of {log}:\n\n{tail(log, LINES)}\n\nOnce the cause is fixed, the same nnssl_demo command "
        "continues from here."
    )


def follow(process: subprocess.Popen, log: Path) -> None:
    """Wait; on a terminal, keep one line with the seconds and the last line of the log."""
    started, is_terminal = time.perf_counter(), sys.stdout.isatty()
    while _is_running(process):
        if is_terminal:
            _overwrite_line(f"    {time.perf_counter() - started:4.0f} s  {tail(log, 1)}")
    if is_terminal:
        _overwrite_line("")
        print("\r", end="", flush=True)


def _is_running(process: subprocess.Popen) -> bool:
    """Whether it still runs after half a second."""
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return True
    return False


def _overwrite_line(text: str) -> None:
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{text[:width]:{width}}", end="", flush=True)
