"""Three memory settings: freed heap memory is kept (glibc), copies to a GPU are asynchronous,
garbage collection is paused.

glibc hands each freed block above its mmap threshold (at most 32 MiB) back to the kernel at once. A
training step on a CPU frees and asks for the same large activations again and again, so each step
pays for mapping, zeroing and faulting in the same gigabytes.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a light import for those who need no tensors
    import torch

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to keep the heap's top; call once, before
    training.

    True where it took effect; False, and harmless, on systems without glibc. The process's resident
    size then stays at its peak. GPU memory is not affected.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Python's collector of cycles rests while the block, or the function it decorates, lasts.

    For records of a whole collection. The collector goes through all that there is again and again
    while their number grows, and none of them is garbage.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` of the CPU on `device`, without waiting for what the device still has to do.

    Only from page-locked memory is a copy really made behind the host's back; that memory is used
    again no sooner than the copy is done.
    """
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
