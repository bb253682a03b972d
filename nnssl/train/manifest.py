"""manifest.json beside a run's checkpoints: its command, versions, machine, hours and energy.

A run that is resumed adds a sitting. Times and energy count from the start of the training loop to
the last checkpoint, so that what a killed process did is not in it.
"""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import nnssl
from nnssl import address, dist, files, limits
from nnssl.types import MANIFEST, PrintFn

if TYPE_CHECKING:
    from nnssl.train.run import Run

FORMAT_VERSION = 1
PACKAGES = ("torch", "numpy", "blosc2", "triton")
COUNTED = ("hours", "device_hours")  # of every sitting, and summed
HOUR = 3600.0  # seconds
JOULES = 3600.0  # a watt hour


class Manifest:
    """The manifest of `run`, with one more sitting that grows with each `write`."""

    def __init__(self, run: Run, print_fn: PrintFn) -> None:
        self.run, self.print_fn, self.warned = run, print_fn, False
        self.path = run.folder / MANIFEST
        self.before: list[dict] = []
        if not dist.is_main():
            return
        self.before = self._sittings_before()
        self.clock, self.meters = time.perf_counter(), _meters(run.device)
        self.joules = _total_joules(self.meters)
        self.sitting = _sitting(run)

    def _sittings_before(self) -> list[dict]:
        """None at the first step: a folder may hold the manifest of a run that was removed."""
        if not self.run.step or not self.path.exists():
            return []
        if (before := sittings_in(self.path)) is None:
            self._warn(
                f"{self.path} is no manifest of ours; the sittings before this one are left out"
            )
        return before or []

    def write(self) -> None:
        """After a checkpoint; the first process alone. What cannot be written costs a warning."""
        if not dist.is_main():
            return
        try:
            files.write_json(self.path, _whole(self.run, [*self.before, self._sitting_now()]))
        except OSError as error:
            if not self.warned:
                self._warn(f"the manifest could not be written: {error}")
            self.warned = True

    def _warn(self, what: str) -> None:
        self.print_fn(f"\nWARNING: {what}")

    def _sitting_now(self) -> dict:
        hours = (time.perf_counter() - self.clock) / HOUR
        return {
            **self.sitting,
            "to_step": self.run.step,
            "ended": _stamp(time.time()),
            "hours": round(hours, 5),
            "device_hours": round(hours * dist.world_size(), 5),
            "energy_wh": self._watt_hours(),
        }

    def _watt_hours(self) -> float | None:
        now = _total_joules(self.meters)
        if now is None or self.joules is None:
            return None
        return round((now - self.joules) / JOULES, 3)


def sittings_in(path: Path) -> list[dict] | None:
    """Of the manifest at `path`; None where it cannot be read, or is not one of ours: all sittings
    have hours.
    """
    try:
        content: object = files.read_json(path)
    except (OSError, ValueError):
        return None
    sittings = content.get("sittings") if isinstance(content, dict) else None
    return sittings if isinstance(sittings, list) and all(map(_is_sitting, sittings)) else None


def _is_sitting(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("energy_wh", 0), int | float | None):
        return False
    return all(isinstance(value.get(name), int | float) for name in COUNTED)


def _sitting(run: Run) -> dict:
    """What is known of one at its start."""
    return {
        "command": _invocation(),
        "from_step": run.step,
        "started": _stamp(time.time()),
        "versions": _versions(),
        "hardware": _hardware(run.device),
    }


def _whole(run: Run, sittings: list[dict]) -> dict:
    return {
        "format_version": FORMAT_VERSION,
        "method": run.header["method"],
        "collection": run.header["plan"].get("name"),
        "step": run.step,
        "steps": run.config.steps,
        **{name: round(sum(each[name] for each in sittings), 5) for name in COUNTED},
        "energy_wh": watt_hours(sittings),
        "sittings": sittings,
    }


def watt_hours(sittings: list[dict]) -> float | None:
    """What the GPUs of the first process's machine took; None where a sitting was not metered."""
    metered = [each["energy_wh"] for each in sittings if each.get("energy_wh") is not None]
    return round(sum(metered), 3) if len(metered) == len(sittings) else None


def _stamp(seconds: float) -> str:
    """ISO 8601, with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def _invocation() -> str:
    return shlex.join([Path(sys.argv[0]).name, *map(_public, sys.argv[1:])])


def _public(word: str) -> str:
    """A word of the command, without what may be secret in an address."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + equals + address.public(value)


def _versions() -> dict[str, str]:
    found = {"nnssl": nnssl.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _hardware(device: torch.device) -> dict:
    found = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": limits.cores(),
        "processes": dist.world_size(),
        "device": device.type,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    if job := os.environ.get("SLURM_JOB_ID"):
        found["slurm_job"] = job
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _meters(device: torch.device) -> list[Callable[[], int]]:
    """One per GPU that this run uses on this machine: millijoules since its driver was loaded.

    Empty where there is no GPU, no nvidia-ml-py, or one of them has no meter (before Volta, MIG).
    """
    if device.type != "cuda":
        return []
    try:
        import pynvml  # pyright: ignore[reportMissingImports] nvidia-ml-py, an extra

        pynvml.nvmlInit()
        uuids = (torch.cuda.get_device_properties(gpu).uuid for gpu in _gpus(device))
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
        return [partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, each) for each in handles]
    except Exception:  # whatever a driver may say: a run does not fail for a meter
        return []


def _gpus(device: torch.device) -> Sequence[int]:
    """Those of all processes of this machine."""
    count = dist.local_world_size()
    return range(count) if count > 1 else [device.index or 0]


def _total_joules(meters: list[Callable[[], int]]) -> float | None:
    """Joules of all; None where there is no meter."""
    try:
        return sum(meter() for meter in meters) / 1000 if meters else None
    except Exception:
        return None
