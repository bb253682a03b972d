"""Run a function over many items in several processes; one failing item or process does not stop
the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import TypeVar

from tqdm import tqdm

from nnssl import files, signals, sockets

Item = TypeVar("Item")
Result = TypeVar("Result")
FEWER = "fewer workers (-np) leave more memory for each"
NOT_STARTED = (EOFError, ConnectionError)  # what starting says when the fork server was killed
OUT_OF_MEMORY = f"out of memory; {FEWER}"

HEAVY = [
    "SimpleITK",
    "blosc2",
    "nnunetv2.preprocessing.resampling.default_resampling",
    "nnunetv2.training.dataloading.nnunet_dataset",
]


@dataclass(frozen=True)
class Failed:
    """Takes the place of a result if an item raised an error or killed its worker.

    no_room: the disk is full, so the other items will fail too.
    """

    reason: str
    no_room: bool = False

    def unless_no_room(self) -> str:
        """The reason. Raises NoRoomError where the other items will fail too."""
        if self.no_room:
            raise files.NoRoomError(self.reason)
        return self.reason


Pairs = Generator[tuple[Item, Result | Failed], None, None]


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_processes: int,
    description: str,
) -> Pairs[Item, Result]:
    """Yield `(item, function(item))` as they finish, in any order, with a progress bar and the time
    left.

    An item whose function raises, or whose worker is killed, yields `(item, Failed(reason))`; the
    others continue. `num_processes` = 0 works in this process. Otherwise `function` and the items
    must pickle, as processes start afresh; at most two items per worker are in flight. The workers
    are killed when the generator is closed or an error passes through it (close it where others may
    hold on to it), and end when this process ends, however it ends. RuntimeError when no worker can
    start.
    """
    if not items:
        return
    in_process = num_processes <= 0
    pairs = (
        _serial(function, items)
        if in_process
        else _results_from_pool(function, items, num_processes)
    )
    bar = tqdm(total=len(items), desc=description, unit="scan", smoothing=0.05, dynamic_ncols=True)
    with bar, closing(pairs):
        for pair in pairs:
            bar.update()
            yield pair


def _serial(function: Callable[[Item], Result], items: Sequence[Item]) -> Pairs[Item, Result]:
    for item in items:
        try:
            result = function(item)
        except Exception as error:
            result = _failure_from_error(error)
        yield item, result


def _results_from_pool(
    function: Callable[[Item], Result], items: Sequence[Item], num_processes: int
) -> Pairs[Item, Result]:
    waiting = list(reversed(items))
    while waiting:
        suspects: list[Item] = []
        yield from _until_broken(function, waiting, suspects, min(num_processes, len(waiting)))
        for item in suspects:
            yield from _isolated_result(function, item)


def _until_broken(
    function: Callable[[Item], Result],
    waiting: list[Item],
    suspects: list[Item],
    num_processes: int,
) -> Pairs[Item, Result]:
    """Take items from the end of `waiting`. When a worker dies, those in flight are left in
    `suspects`.
    """
    running: dict[Future[Result], Item] = {}
    pool = _pool(num_processes)
    try:
        while waiting or running:
            while waiting and len(running) < 2 * num_processes:
                running[pool.submit(function, waiting[-1])] = waiting[-1]
                waiting.pop()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                # raises when the pool is broken, and the item is still in `running`
                result = _result(future)
                yield running.pop(future), result
    except (BrokenProcessPool, *NOT_STARTED):
        suspects.extend(running.values())
    except BaseException:  # we are asked to stop: what is in hand is not worth waiting for
        _kill(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _isolated_result(function: Callable[[Item], Result], item: Item) -> Pairs[Item, Result]:
    """A suspect gets a process of its own: if that one dies as well, the item is to blame."""
    pool = _pool(1)
    (worker,) = pool._processes.values()
    try:
        yield item, _result(pool.submit(function, item))
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)  # its thread learns how the worker ended
        cure = f"; {FEWER}" if worker.exitcode == -signal.SIGKILL else ""
        yield item, Failed(f"its worker {signals.how_ended(worker.exitcode)}{cure}")
    except BaseException:
        _kill(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Result]) -> Result | Failed:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:
        return _failure_from_error(error)


def _failure_from_error(error: Exception) -> Failed:
    if isinstance(error, MemoryError):
        return Failed(OUT_OF_MEMORY)
    return Failed(
        " ".join(str(error).split()) or type(error).__name__, isinstance(error, files.NoRoomError)
    )


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _pool(num_processes: int) -> ProcessPoolExecutor:
    sockets.room_for_sockets()
    pool = ProcessPoolExecutor(num_processes, mp_context=_context(), initializer=_start_worker)
    try:
        pool.submit(_nothing).result()  # so that a start that fails is not blamed on an item
    except (BrokenProcessPool, *NOT_STARTED) as error:
        pool.shutdown(cancel_futures=True)
        raise RuntimeError(
            "worker processes cannot start; a script that calls this must do so under `if "
            "__name__ == '__main__':`, or work in one process (num_processes=0)"
        ) from error
    except BaseException:
        _kill(pool)
        pool.shutdown(cancel_futures=True)
        raise
    return pool


def _context() -> BaseContext:
    """A fork server if available: it imports HEAVY once, for all workers of both stages."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def _nothing() -> None:
    pass


def _start_worker() -> None:
    """One thread per worker; it ignores Ctrl-C (the parent ends it), and ends with the parent."""
    signals.disregard([signal.SIGINT])
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
