"""Doing the demo: one folder, one stage after the other, each command's output in a log, the time
of each.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nnssl.commands import Command, CommandError, run_logged, tail
from nnssl.demo.chain import Demo, Stage
from nnssl.files import read_json, write_json

MARKER = "nnssl_demo.json"  # its presence says that the folder is the demo's to write in
OURS = ("scans", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "logs")
LINES = 25  # of the log, shown when a command fails


class DemoError(CommandError):
    """The message is for the user: what failed, and what to do next."""


def run(demo: Demo) -> dict[str, float]:
    """Every stage that is not finished yet; returns the seconds of each.

    Raises DemoError, with the end of the log, when a command fails, and for a folder that is not
    the demo's.
    """
    finished = open_folder(demo)
    print(f"The demo works in {demo.folder}, as if you had typed:\n")
    for name, folder in demo.variables.items():
        print(f"    export {name}={shlex.quote(folder)}")
    stages = demo.stages()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.title}", flush=True)
        if stage.name in finished:
            print(f"    finished earlier, in {finished[stage.name]:.0f} s")
            continue
        finished[stage.name] = round(do(stage, demo), 1)
        write_json(demo.folder / MARKER, {"settings": demo.settings(), "finished": finished})
        print(f"    {finished[stage.name]:.0f} s")
    return finished


def open_folder(demo: Demo) -> dict[str, float]:
    """Make the folder, or find what earlier runs with the same settings finished; other settings
    start afresh.
    """
    marker, finished = demo.folder / MARKER, {}
    if marker.is_file():
        earlier = read_json(marker)
        finished = earlier["finished"] if earlier["settings"] == demo.settings() else {}
    elif demo.folder.exists() and (not demo.folder.is_dir() or any(demo.folder.iterdir())):
        raise DemoError(
            f"{demo.folder} is not empty and not the demo's; give a new folder: nnssl_demo -o "
            "FOLDER"
        )
    if not finished:
        clear(demo.folder, OURS)
    for name in OURS:
        (demo.folder / name).mkdir(parents=True, exist_ok=True)
    write_json(marker, {"settings": demo.settings(), "finished": finished})
    return finished


def clear(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def do(stage: Stage, demo: Demo) -> float:
    """The stage from its start; returns its seconds."""
    started = time.perf_counter()
    clear(demo.folder, stage.makes)
    if callable(stage.work):
        stage.work()
    else:
        log = demo.folder / "logs" / f"{stage.name.replace(' ', '_')}.log"
        log.unlink(missing_ok=True)
        for command in stage.work:
            print(f"    $ {shlex.join(command)}", flush=True)
            execute(command, log, environment(demo))
    return time.perf_counter() - started


def environment(demo: Demo) -> dict[str, str]:
    """The caller's, with nnU-Net's variables turned to the demo's folder and no checkpoint of the
    user's.
    """
    kept = {name: value for name, value in os.environ.items() if name != "nnssl_checkpoint"}
    # Threads that wait in a busy loop take the cores from nnU-Net's other processes, several times
    # over on two cores.
    patient = {"OMP_WAIT_POLICY": "PASSIVE"}
    return {**patient, **kept, "MPLBACKEND": "Agg", **demo.processes, **demo.variables}


def execute(command: Command, log: Path, variables: dict[str, str]) -> None:
    """Run with all output in `log`; raises DemoError when the command fails."""
    if status := run_logged(command, log, variables, wait=lambda process: follow(process, log)):
        raise DemoError(
            f"this command ended with status {status}:\n\n    {shlex.join(command)}\n\n"
            f"The last lines of {log}:\n\n{tail(log, LINES)}\n\n"
            "Once the cause is gone, the same nnssl_demo command continues from here."
        )


def follow(process: subprocess.Popen, log: Path) -> None:
    """Wait; on a terminal, keep one line with the seconds and the last thing that the command
    said.
    """
    started, live = time.perf_counter(), sys.stdout.isatty()
    while True:
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if live:
                width = shutil.get_terminal_size().columns - 1
                said = f"    {time.perf_counter() - started:4.0f} s  {tail(log, 1)}"
                print(f"\r{said[:width]:{width}}", end="", flush=True)
    if live:
        print(f"\r{'':{shutil.get_terminal_size().columns - 1}}\r", end="", flush=True)
