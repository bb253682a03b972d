"""Several processes: PyTorch's own launcher and DDP, through NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as td

from nnssl import dist, signals

AS_SIGTERM = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
LONG = timedelta(days=14)  # one process prepares ten thousand scans while the others wait


def choose_device(requested: str | None) -> torch.device:
    """The device of this process: `requested`, or a GPU where there is one.

    Raises ValueError when it is not there.
    """
    available = _available_devices()
    name = requested or ("cuda" if "cuda" in available else "cpu")
    if name not in available:
        there = ", ".join(available)
        raise ValueError(f"-device {name} is not available on this machine; available: {there}")
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device(name)


def _available_devices() -> list[str]:
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [name for name, is_here in here.items() if is_here]


def launch(num_gpus: int, arguments: list[str]) -> str | None:
    """Run the same command in `num_gpus` processes through torchrun, and wait for them.

    None where there is nothing to launch: one process, or one of those that were launched. Else how
    they ended: "done", "failed" (they have said why) or "stopped" (by a signal, which torchrun has
    passed on).
    """
    if num_gpus <= 1 or "LOCAL_RANK" in os.environ:
        return None
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", "--nproc-per-node", str(num_gpus)]
    try:
        with signals.handled(_as_sigterm, AS_SIGTERM):
            run.run(run.parse_args([*options, "-m", "nnssl", "pretrain", *arguments]))
    except SignalException:
        return "stopped"
    except ChildFailedError:
        return "failed"
    return "done"


def _as_sigterm(*_: object) -> None:
    """torchrun does not know all signals that ask to stop; unheard they would end it alone."""
    os.kill(os.getpid(), signal.SIGTERM)


def init_process_group(device: torch.device) -> None:
    """Join the other processes when a launcher started several; nothing otherwise.

    Raises ValueError where srun started several that do not know of each other.
    """
    _require_one_launcher()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    td.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _require_one_launcher() -> None:
    together = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if together not in ("", "1") and "RANK" not in os.environ:
        raise ValueError(
            f"srun started this command {together} times, and each copy would train the whole run "
            "by itself. Start it once (srun --ntasks=1) with -num_gpus N, or on several machines "
            "one torchrun each: srun --ntasks-per-node=1 torchrun --nnodes=M --nproc-per-node=N "
            "... -m nnssl pretrain ..."
        )


def destroy_process_group() -> None:
    if dist.is_initialized():
        td.destroy_process_group()


Result = TypeVar("Result")


def rank_zero_first(
    work: Callable[[], Result], done: Callable[[], Result | None] = lambda: None
) -> Result:
    """Rank 0 does `work` first. The others take what is `done` then, or do it too where that is
    None. Returns what `work` returns.

    An error of rank 0 ends the others as well, at once, instead of leaving them waiting.
    """
    if not dist.is_initialized():
        return work()
    # a number only where a process is no member
    patient = cast("td.ProcessGroup", td.new_group(backend="gloo", timeout=LONG))
    outcome: list = [None, False]
    if dist.is_main():
        try:
            result = work()
        except BaseException as error:
            outcome = [f"{type(error).__name__}: {error}", isinstance(error, signals.Interrupted)]
            td.broadcast_object_list(outcome, src=0, group=patient)
            raise
        td.broadcast_object_list(outcome, src=0, group=patient)
        return result
    td.broadcast_object_list(outcome, src=0, group=patient)
    if outcome[0] is not None:
        raise signals.Interrupted if outcome[1] else RuntimeError(f"rank 0 failed: {outcome[0]}")
    result = done()
    return work() if result is None else result


def require_same(value: object, device: torch.device, message: str) -> None:
    """Raise ValueError in all processes where they do not have the same `value` (by its text)."""
    number = int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:6], "big")
    if dist.all_reduce_min(number, device) != -dist.all_reduce_min(-number, device):
        raise ValueError(message)


def end_at_once(status: int) -> None:
    """Of several processes, end this one now, with the traceback of an error that is in hand: the
    launcher then ends the others.

    Leaving the group in order would wait for them, and they wait for this one: NCCL's shutdown
    does, and so does Python's end, until a timeout of minutes.
    """
    if dist.is_initialized():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
