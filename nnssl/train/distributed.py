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
LAST = 2  # the number of the last turn of `rank_zero_first`


def choose_device(requested: str | None) -> torch.device:
    """The device of this process: `requested`, or a GPU where there is one.

    Raises ValueError when it is not there, and where a machine has more processes than GPUs.
    """
    available = _available_devices()
    name = requested or ("cuda" if "cuda" in available else "cpu")
    if name not in available:
        there = ", ".join(available)
        raise ValueError(f"-device {name} is not available on this machine; available: {there}")
    return _own_gpu() if name == "cuda" else torch.device(name)


def _own_gpu() -> torch.device:
    number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= gpus:
        raise ValueError(
            f"process {number + 1} of this machine has no GPU: {gpus} can be seen. Start at most "
            f"{gpus} here (-num_gpus {gpus}, or torchrun --nproc-per-node={gpus}), or look at "
            "CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", number)


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
    """Join the other processes when a launcher started several; nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    td.init_process_group("nccl" if device.type == "cuda" else "gloo")


def require_one_launcher() -> None:
    """Raise ValueError where srun started several processes that do not know of each other."""
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
    """Rank 0 does `work` first, then one process of each other machine, then the rest. All but rank
    0 take what is `done` when it is their turn, or do it too where that is None. Returns what
    `work` returns.

    An error of one that was waited for ends the others as well, at once, instead of leaving them
    waiting.
    """
    if not dist.is_initialized():
        return work()
    # a number only where a process is no member
    patient = cast("td.ProcessGroup", td.new_group(backend="gloo", timeout=LONG))
    mine = _turn()
    for _ in range(mine):
        _wait_for_a_turn(patient)
    try:
        result = done() if mine else None
        result = work() if result is None else result
    except BaseException as error:
        if mine < LAST:
            _end_a_turn(patient, error)
        raise
    for _ in range(mine, LAST):
        _wait_for_a_turn(patient)
    return result


def _turn() -> int:
    """0 for rank 0, 1 for the first process of another machine, `LAST` for the rest."""
    if dist.is_main():
        return 0
    return 1 if os.environ.get("LOCAL_RANK", "0") == "0" else LAST


def _wait_for_a_turn(group: td.ProcessGroup) -> None:
    """Until this turn has ended; raises where a process has failed in it."""
    for rank, failure in enumerate(_end_a_turn(group, None)):
        if failure is not None:
            said, interrupted = failure
            raise (
                signals.Interrupted if interrupted else RuntimeError(f"rank {rank} failed: {said}")
            )


def _end_a_turn(
    group: td.ProcessGroup, error: BaseException | None
) -> list[tuple[str, bool] | None]:
    """What went wrong, by rank: in words, and whether it is a request to stop."""
    failures: list[tuple[str, bool] | None] = [None] * dist.world_size()
    own = error and (f"{type(error).__name__}: {error}", isinstance(error, signals.Interrupted))
    td.all_gather_object(failures, own, group=group)
    return failures


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
