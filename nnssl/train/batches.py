"""Distribution of scans: every random number of a run is a function of (seed, sample), never of the
process.

Sample number i of the run is the same crop, with the same views, whether one process or eight are
training, with or without accumulation, before or after a resume. That is what makes resuming exact
and processes equal.
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from nnssl import dist, limits, signals, sockets

CHILD = (signal.SIGCHLD,) if hasattr(signal, "SIGCHLD") else ()
TO_SEE = 5.0  # seconds within which the end of a reader that ends, or was killed, is seen
PATIENCE = 2.0  # seconds that a reader may take to end by itself
FAILURES = (RuntimeError, OSError, EOFError)  # what PyTorch raises when a reader is gone
HANG_UPS = (EOFError, ConnectionError)  # what a reader's connection raises when the loop is gone
WHEN_GONE = (
    "A process that reads crops has ended. If it was killed, memory ran out: use fewer --workers "
    "or a smaller --batch-size. If it was a bus error or a shared-memory error, /dev/shm is too "
    "small: in a container, docker run --shm-size=8g. --workers 0 runs without such processes. "
    "The same command with --c continues from the last save"
)


class ReaderError(RuntimeError):
    """A process that reads crops was killed, or cannot hand over what it has read."""


def mixed_seed(*parts: object) -> int:
    """A 63-bit seed that differs wherever any of `parts` differs."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, index: int) -> torch.Generator:
    """The random generator for the views of sample `index`."""
    return torch.Generator().manual_seed(mixed_seed(seed, "views", index))


class MicroBatches:
    """A batch sampler: the sample numbers of each micro-batch of this process, from step `start`
    on.
    """

    def __init__(self, start: int, steps: int, batch_size: int, accumulate: int) -> None:
        require_divisible(batch_size, accumulate)
        self.start, self.steps = start, steps
        self.batch_size, self.accumulate = batch_size, accumulate
        self.size = batch_size // (dist.world_size() * accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            for part in range(self.accumulate):
                block = part * dist.world_size() + dist.rank()
                first = step * self.batch_size + block * self.size
                yield list(range(first, first + self.size))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate


def require_divisible(batch_size: int, accumulate: int) -> None:
    """Raise ValueError where the processes and parts of a step cannot have equally many scans."""
    parts = dist.world_size() * accumulate
    if batch_size % parts:
        raise ValueError(
            f"a total batch of {batch_size} cannot be divided among {dist.world_size()} processes "
            f"x {accumulate} accumulated parts; choose a --batch-size that is a multiple of {parts}"
        )


class Samples(Protocol):
    """The training data of a run: `nnssl.data.crops.Crops`, or synthetic samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict: ...


def collate(samples: Sequence[dict]) -> dict:
    """A batch of samples. Crops of float16 beside some of float32, of a collection that an earlier
    version began, become float32.
    """
    if len({sample["crop"].dtype for sample in samples if "crop" in sample}) > 1:
        samples = [{**sample, "crop": sample["crop"].float()} for sample in samples]
    return default_collate(list(samples))


def loader(crops: Samples, batches: MicroBatches, workers: int, pin_memory: bool) -> DataLoader:
    """Crops in the order of `batches`, read ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        cast("Dataset", crops),  # of which it needs no more than `Samples` has
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
        multiprocessing_context=_start_method(workers),
    )


def _start_method(workers: int) -> str | None:
    """By fork where there is one, as Python did before 3.14: a fork server ends with a signal to
    all processes of a job, and what the readers hold would be copied to /dev/shm.
    """
    return "fork" if workers and sys.platform == "linux" else None


@contextmanager
def reading(
    crops: Samples, batches: MicroBatches, workers: int, pin_memory: bool
) -> Iterator[Iterator[dict]]:
    """The batches of `loader`; its readers have ended when the block is left, whatever still refers
    to it.

    The next batch raises ReaderError within seconds when a reader was killed or cannot hand over
    what it has read.
    """
    if workers:
        sockets.room_for_sockets()
    stream = _Stream(loader(crops, batches, workers, pin_memory))
    at_exit = partial(_end_all, stream.readers)
    atexit.register(at_exit)  # comes before multiprocessing's, which waits for its children
    with signals.handled(stream.child_ended, CHILD):
        try:
            yield stream
        finally:
            if stream.readers:
                _end_readers(stream)
            atexit.unregister(at_exit)


class _Stream:
    """The batches of a loader. The end of a reader raises where a batch is waited for, and only
    there.

    PyTorch's own handler of SIGCHLD raises wherever the main thread happens to be, also while
    another error of the same reader is being handled, and hides it.
    """

    def __init__(self, crops: DataLoader) -> None:
        self.waits = False
        try:
            self.batches = iter(crops)
        except FAILURES as error:  # no memory, or no room in /dev/shm
            raise ReaderError(_what_happened(error, [])) from error
        self.readers = list(getattr(self.batches, "_workers", ()))

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        try:
            return self._next()
        except FAILURES as error:
            codes = _exit_codes(self.readers)
            if codes or _is_readers(error):
                raise ReaderError(_what_happened(error, codes)) from error
            raise

    def _next(self) -> dict:
        self.waits = True
        try:
            self._check()
            return next(self.batches)
        finally:
            self.waits = False

    def child_ended(self, *_: object) -> None:
        """The handler of SIGCHLD: without one, a batch that a killed reader handed over by half
        would never come to its end.
        """
        if self.waits:
            self._check()

    def _check(self) -> None:
        if any(reader.exitcode for reader in self.readers):
            self.waits = False  # once: the handling of this error is not interrupted
            raise EOFError


def _what_happened(error: Exception, codes: list[int]) -> str:
    gone = [f"A reader {signals.how_ended(code)}" for code in codes if code]
    said = str(error) or ("" if gone else type(error).__name__)
    return "\n".join(filter(None, [said, *gone, WHEN_GONE]))


def _exit_codes(readers: list) -> list[int]:
    """The exit codes of the readers that have ended, or end within `TO_SEE`."""
    ended = wait([reader.sentinel for reader in readers], TO_SEE) if readers else []
    for reader in readers:
        if reader.sentinel in ended:  # closed a moment before the process has its exit code
            reader.join(TO_SEE)
    return [reader.exitcode for reader in readers if reader.exitcode is not None]


def _is_readers(error: Exception) -> bool:
    """Whether an error is about the reading processes rather than about what they read."""
    text = str(error)
    from_torch = text.startswith(("DataLoader worker", "Pin memory thread"))
    return isinstance(error, EOFError) or from_torch or "shared memory" in text


def _end_readers(stream: _Stream) -> None:
    """End the readers now: PyTorch does so when nothing refers to its iterator any more, which may
    be never.
    """
    deadline = threading.Timer(PATIENCE, _send_kill, [stream.readers])  # one may hang in a read
    deadline.daemon = True
    deadline.start()
    with suppress(RuntimeError):  # that a reader was killed
        stream.batches._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue] its own
    deadline.cancel()
    deadline.join()
    _kill(stream.readers)


def _send_kill(readers: list) -> None:
    """Waits for none: where two threads wait for a process, one of them does not see its end."""
    for reader in readers:
        reader.kill()


def _kill(readers: list) -> None:
    for reader in readers:
        if reader.is_alive():
            reader.kill()
            reader.join(TO_SEE)


def _end_all(readers: list) -> None:
    """At Python's end, when no thread can start any more: `_end_readers` has nothing to do."""
    _kill(readers)
    readers.clear()


def default_workers(device: torch.device) -> int:
    """One reader beside a CPU run; on a GPU as many as the cores this process may count on, at most
    eight.
    """
    return 1 if device.type == "cpu" else max(1, min(8, _cores() - 1))


def _cores() -> int:
    """The cores of the machine for each of its processes."""
    return limits.cores() // dist.local_world_size()


def _quiet_worker(_: int) -> None:
    # A cluster signals every process of a job; the loop decides when reading stops, not the reader.
    signals.disregard()
    # By itself the thread that hands over prints an error and drops the batch, for which the loop
    # would wait for ever.
    handler = staticmethod(_give_up)
    # typeshed leaves it out
    queue: type = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = handler  # pyright: ignore[reportAttributeAccessIssue]
    # The thread that hands over file handles prints an error where the loop stops meanwhile.
    sys.excepthook = _pass_over_hang_ups
    torch.set_num_threads(1)


def _pass_over_hang_ups(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, HANG_UPS):
        sys.__excepthook__(kind, error, trace)


def _give_up(error: Exception, _: object) -> None:
    print(
        f"\nerror: a reader cannot hand over what it has read: {error!r}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
