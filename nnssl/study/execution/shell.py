"""Commands of a study, each in a process of its own, with all their output in a log."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl import trainer_path
from nnssl.commands import Command, CommandError, child_environment, run_logged, tail
from nnssl.types import PrintFn

LINES = 15  # of the log, in the reason of a failure


@dataclass(frozen=True)
class Foreground:
    """For commands that are quick, or common to all runs: run at once, and printed.

    folder: of their logs.
    """

    folder: Path
    print_fn: PrintFn

    def run(self, commands: Sequence[Command], name: str, lock: int | None = None) -> None:
        """All output is added to <name>.txt. lock: as of `execute`. Raises CommandError."""
        log = self.folder / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in commands:
            self.print_fn(f"  $ {shlex.join(command)}")
            execute(command, log, lock)


def execute(
    command: Command, log: Path, lock: int | None = None, env: dict[str, str] | None = None
) -> None:
    """Run with all output in `log`; the child shares the lock, which it holds on to should this
    process be killed. `env`: `environment()` by default.

    Raises CommandError, with the end of the log.
    """
    if status := run_logged(command, log, env or environment(), lock=lock):
        raise _failed_command(command, status, log)


def _failed_command(command: Command, status: int, log: Path) -> CommandError:
    return CommandError(
        f"{Path(command[0]).name} ended with status {status}\n$ {shlex.join(command)}\n"
        f"The end of {log}:\n{tail(log, LINES)}"
    )


def environment() -> dict[str, str]:
    """`child_environment`, with our trainers where nnU-Net looks."""
    variables = child_environment()
    variables[trainer_path.VARIABLE] = trainer_path.with_ours(
        variables.get(trainer_path.VARIABLE, "")
    )
    return variables


def others_environment() -> dict[str, str]:
    """For the programs of another environment, which must see neither our trainers nor our package:
    MIC-DKFZ's is imported by the same name.
    """
    ours = (trainer_path.VARIABLE, "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in environment().items() if name not in ours}
