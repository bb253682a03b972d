"""What the machine provides: GPU, processors, threads, shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnssl import limits
from nnssl.doctor.finding import Finding, first_line, note, ok, wrong

SHARED = Path("/dev/shm")
GIB = 2**30
LEAST_SHARED = GIB // 2  # a container's 64 MiB end a training with "bus error" in its first epoch
COMPILERS = ("gcc", "clang")  # those that Triton looks for
COMPILE = "nnUNet_compile"  # on where it is not set
GET_COMPILER = f"sudo apt-get install gcc libc6-dev   # or, slower: export {COMPILE}=f"
# a placeholder: which CUDA has kernels for a GPU changes from release to release of PyTorch
OTHER_CUDA = (
    "pip uninstall -y torch torchvision && pip install torch torchvision --index-url "
    "https://download.pytorch.org/whl/CUDA   # CUDA: such as cu126"
)


def machine() -> list[Finding]:
    return [*_devices(), *_processors(), *_shared_memory()]


def _devices() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())]
        return [*gpus, *_compiler()]
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
    says = f"GPU {number}: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB"
    try:  # a visible GPU may be one that this PyTorch has no kernels for, which only a kernel shows
        torch.ones(1, device=f"cuda:{number}").add_(1).cpu()
    except torch.OutOfMemoryError:
        return note(f"{says}, has no memory left: another program uses it", "nvidia-smi")
    except RuntimeError as error:
        return _failing(f"{says}, cannot compute: {first_line(error)}", number)
    return ok(says)


def _failing(says: str, number: int) -> Finding:
    """`says`: which GPU, and what its driver or PyTorch said."""
    import torch

    major, minor = torch.cuda.get_device_capability(number)
    kernels = ", ".join(torch.cuda.get_arch_list()) or "none"
    return wrong(
        f"{says}.\nIts compute capability is {major}.{minor}; torch {torch.__version__} has "
        f"kernels for: {kernels}.\nIf that is not among them, install PyTorch for another CUDA "
        "version, see https://pytorch.org/get-started/locally;\notherwise look at nvidia-smi",
        OTHER_CUDA,
    )


def _compiler() -> Iterator[Finding]:
    """Nothing where Triton will find one: it builds what starts its kernels when they first run."""
    if os.environ.get("CC") or any(map(shutil.which, COMPILERS)):
        return
    says = (
        f"no C compiler: CC is not set, and neither {' nor '.join(COMPILERS)} is on PATH. Triton "
        "needs one.\nWithout it, the kernels of this package are not used"
    )
    if os.environ.get(COMPILE, "t").lower() in ("true", "1", "t"):
        yield wrong(f"{says}, and nnU-Net's torch.compile ends a training", GET_COMPILER)
    else:
        yield note(f"{says}, and everything runs more slowly", GET_COMPILER)


def _processors() -> list[Finding]:
    """nnU-Net counts the machine's processors, not those that this process may use."""
    import torch
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    usable, augmenting = limits.cores(), get_allowed_n_proc_DA()
    says = (
        f"{usable} of {os.cpu_count() or 1} processors usable, PyTorch uses "
        f"{torch.get_num_threads()} threads, nnU-Net {augmenting} processes for augmentation"
    )
    return [_augmenting(says, augmenting, usable), *_writing(default_num_processes, usable)]


def _augmenting(says: str, processes: int, usable: int) -> Finding:
    if processes > usable:
        return note(f"{says}: more than are usable", f"export nnUNet_n_proc_DA={usable}")
    if processes < 1:  # its planner makes this number PyTorch's threads
        return note(f"{says}: its planning fails with {processes}", "export nnUNet_n_proc_DA=1")
    return ok(says)


def _writing(processes: int, usable: int) -> Iterator[Finding]:
    """Each process imports PyTorch, for every validation and prediction again."""
    if processes > usable:
        says = f"nnU-Net starts {processes} processes to write predictions, {usable} are usable"
        yield note(f"{says}: each takes seconds to start", f"export nnUNet_def_n_proc={usable}")


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
