"""What the machine provides: GPU, processors, threads, shared memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nnssl.doctor.finding import Finding, note, ok, wrong

SHARED = Path("/dev/shm")
GIB = 2**30
LEAST_SHARED = GIB // 2  # a container's 64 MiB end a training with "bus error" in its first epoch


def machine() -> list[Finding]:
    return [*_devices(), _processors(), *_shared_memory()]


def _devices() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        return [_gpu(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [ok("no CUDA; Apple's GPU: -device mps")]
    return [_no_gpu(torch.version.cuda)]


def _no_gpu(cuda: str | None) -> Finding:
    """`cuda`: the version that PyTorch was built for."""
    built = f"built for CUDA {cuda}" if cuda else "built without CUDA"
    slowly = "everything runs, slowly, with -device cpu"
    return note(f"no GPU is visible, and PyTorch is {built}: {slowly}")


def _gpu(number: int) -> Finding:
    import torch

    gpu = torch.cuda.get_device_properties(number)
    return ok(f"GPU {number}: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB")


def _processors() -> Finding:
    """nnU-Net counts the machine's processors, not those that this process may use."""
    import torch
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    usable, there = _usable_processors()
    augmenting = get_allowed_n_proc_DA()
    says = (
        f"{usable} of {there} processors usable, PyTorch uses {torch.get_num_threads()} threads, "
        f"nnU-Net {augmenting} processes for augmentation"
    )
    if augmenting > usable:
        return note(f"{says}: more than are usable", f"export nnUNet_n_proc_DA={usable}")
    if augmenting < 1:  # its planner makes this number PyTorch's threads
        return note(f"{says}: its planning fails with {augmenting}", "export nnUNet_n_proc_DA=1")
    return ok(says)


def _usable_processors() -> tuple[int, int]:
    """Those that this process may use, and the machine's."""
    there = os.cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there, there


def _shared_memory() -> list[Finding]:
    """nnU-Net's and our own reading processes hand batches over through it."""
    if not SHARED.is_dir():
        return []
    total = shutil.disk_usage(SHARED).total
    says = f"{total / GIB:.1f} GiB of shared memory"
    if total >= LEAST_SHARED:
        return [ok(says)]
    little = f"{says}: too small for the processes that read batches"
    return [wrong(little, "docker run --shm-size=8g ...")]
