"""The only training loop. It knows the contract of a method, not the methods."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from nnssl import dist
from nnssl.signals import Interrupted
from nnssl.train import batches
from nnssl.train.log import Log
from nnssl.train.run import WHEN_DIVERGED, Diverged, Run
from nnssl.train.signals import Signals

PATIENCE = 20  # steps in a row without a finite gradient before a run gives up


def train(run: Run, say: Callable[[str], None] = print) -> Path:
    """Train `run` from where it is to its last step; returns the final checkpoint.

    Raises Interrupted (after saving) when the run is asked to stop (signals.STOPS), Diverged when
    gradients stay not finite, and batches.ReaderError when a process that reads crops is gone.
    However it ends, no process that it started is left.
    """
    config, log = run.config, Log(run, say)
    micro = batches.MicroBatches(run.step, config.steps, config.batch_size, config.accumulate)
    reading = batches.reading(run.crops, micro, config.workers, pin_memory=run.device.type == "cuda")
    picture = _Picture(log, run, say)
    bar = tqdm(
        total=config.steps,
        initial=run.step,
        unit="step",
        disable=not dist.is_main(),
        dynamic_ncols=True,
        smoothing=0.05,
    )
    with Signals() as signals, reading as stream, bar:
        while run.step < config.steps:
            began = time.perf_counter()
            try:
                with signals.waiting():
                    parts = [next(stream) for _ in range(config.accumulate)]
            except Interrupted:  # no picture: it would wait for the same data
                run.save(log.last)
                raise _stopped(run) from None
            waited = time.perf_counter() - began
            losses, watched = run.gradients(parts)
            norm, rate = run.update()
            seconds = time.perf_counter() - began
            log.pace(seconds)
            if run.failures:
                _failed(run, losses, say)
            elif run.step % config.log_every == 0 or run.step == config.steps or run.probes():
                rejected = sum(int(part["rejected"].sum()) for part in parts)
                row = log.row(losses, watched, norm=norm, rate=rate, seconds=seconds, waited=waited, rejected=rejected)
                run.keep_best(row)
                bar.set_postfix(loss=f"{row['total']:.4f}", refresh=False)
            bar.update()
            stop = signals.asked()
            if stop or run.step % config.save_every == 0 or run.step == config.steps:
                run.save(log.last)
                picture.draw()
            if stop:
                raise _stopped(run)
    final = run.finish(log.last)
    dist.barrier()
    return final


def _stopped(run: Run) -> Interrupted:
    return Interrupted(f"stopped at step {run.step} of {run.config.steps}; the same line with --c continues")


class _Picture:
    """The pictures of a run. One that cannot be made costs a warning, the first time, and no training."""

    def __init__(self, log: Log, run: Run, say: Callable[[str], None]) -> None:
        self.log, self.run, self.say = log, run, say
        self.warned = False

    def draw(self) -> None:
        try:
            self.log.draw()
        except Exception as error:
            self.run.method.train()
            if not self.warned:
                self.say(f"\nWARNING: the pictures could not be written, the training goes on: {error}")
            self.warned = True


def _failed(run: Run, losses: dict, say: Callable[[str], None]) -> None:
    if dist.is_main() and run.failures in (1, PATIENCE):
        shown = {name: float(value) for name, value in losses.items()}
        say(
            f"\nWARNING: the gradient of step {run.step} is not finite, losses {shown}; the step was skipped. "
            f"{WHEN_DIVERGED}"
        )
    if run.failures >= PATIENCE:
        raise Diverged(f"no finite gradient for {PATIENCE} steps in a row, up to step {run.step}. {WHEN_DIVERGED}")
