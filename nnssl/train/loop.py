"""The only training loop. It depends on the method interface, not on individual methods."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from nnssl import dist
from nnssl.signals import Interrupted
from nnssl.train import batches
from nnssl.train.graph import StepGraph, StepResult
from nnssl.train.log import Log
from nnssl.train.manifest import Manifest
from nnssl.train.run import WHEN_DIVERGED, Diverged, Run
from nnssl.train.stopping import Signals
from nnssl.types import PrintFn

SAVE_SECONDS = 600.0  # after which a run is saved at the end of its step
PATIENCE = 20  # steps in a row without a finite gradient before a run gives up


def train(run: Run, print_fn: PrintFn = print) -> Path:
    """Train `run` from where it is to its last step; returns the final checkpoint.

    Raises Interrupted (after saving) when the run is asked to stop (signals.STOPS), Diverged when
    gradients stay not finite, and batches.ReaderError when a process that reads crops is gone.
    However it ends, no process that it started is left.
    """
    config = run.config
    micro = batches.MicroBatches(run.step, config.steps, config.batch_size, config.accumulate)
    reading = batches.reading(
        run.crops, micro, config.workers, pin_memory=run.device.type == "cuda"
    )
    step = StepGraph(run, print_fn).step if config.graph else run.advance
    manifest = Manifest(run, print_fn)
    with (
        closing(Log(run, print_fn)) as log,
        Signals() as signals,
        reading as stream,
        _step_bar(run) as bar,
    ):
        clock, saver = _Clock(), _Saver(log, manifest, _Picture(log, run, print_fn))
        while run.step < config.steps:
            with clock.waiting():
                parts = signals.wait_for(lambda: [next(stream) for _ in range(config.accumulate)])
            if signals.stop_requested() or parts is None:
                saver.stop(draw=not signals.gave_up)  # a picture would wait for the same data
                raise _stopped(run)
            result = step(parts)
            clock.steps += 1
            logged = run.step % config.log_every == 0 or run.step == config.steps or run.probes()
            # Between two looks the host does not wait for the device.
            looked = logged or run.step % PATIENCE == 0
            failing = looked and _check_skipped(run, result.losses, clock.steps, print_fn)
            if logged and not failing:
                row = _write_row(log, result, clock, parts)
                bar.set_postfix(_postfix(row), refresh=False)
            bar.update()
            if saver.after_step() or logged:
                clock = _Clock()
    return saver.finish()


def _step_bar(run: Run) -> tqdm:
    return tqdm(
        total=run.config.steps,
        initial=run.step,
        unit="step",
        disable=not dist.is_main(),
        dynamic_ncols=True,
        smoothing=0.05,
    )


def _write_row(log: Log, result: StepResult, clock: _Clock, parts: list[dict]) -> dict:
    """Log this step, save the best encoder, and print the speed."""
    timed = clock.read()
    row = log.row(result, rejected=_rejected(parts), **timed)
    log.run.keep_best(row)
    log.pace(timed["seconds"])
    return row


def _rejected(parts: list[dict]) -> int:
    """Crops that were redrawn for lack of body."""
    return sum(int(part["rejected"].sum()) for part in parts)


def _postfix(row: dict) -> dict[str, str]:
    """The values of a row in the progress bar."""
    shown = {"loss": f"{row['total']:.4f}"}
    if "of_peak" in row:
        shown["of peak"] = f"{row['of_peak']:.1%}"
    return {
        **shown,
        "scans/s": f"{row['samples_per_second']:.1f}",
        "wait": f"{row['data_wait']:.0%}",
    }


def _stopped(run: Run) -> Interrupted:
    return Interrupted(
        f"stopped at step {run.step} of {run.config.steps}; the same command with --c continues"
    )


class _Saver:
    """Writes the checkpoints of a run, and the manifest after each."""

    def __init__(self, log: Log, manifest: Manifest, picture: _Picture) -> None:
        self.log, self.manifest, self.picture = log, manifest, picture
        self.saved = time.perf_counter()

    def after_step(self) -> bool:
        """Save where it is due, and draw the pictures; whether it was."""
        if not self._is_due():
            return False
        self._save()
        self.picture.draw()
        return True

    def _is_due(self) -> bool:
        """By the step, or by the clock of the first process, which alone writes."""
        run, seconds = self.log.run, time.perf_counter() - self.saved
        by_step = run.step % run.config.save_every == 0 or run.step == run.config.steps
        return by_step or (dist.is_main() and seconds > SAVE_SECONDS)

    def _save(self) -> None:
        self.log.run.save(self.log.last)
        self.manifest.write()
        self.saved = time.perf_counter()

    def stop(self, draw: bool) -> None:
        """Save before the run stops."""
        self._save()
        if draw:
            self.picture.draw()

    def finish(self) -> Path:
        final = self.log.run.finish(self.log.last)
        self.manifest.write()
        dist.barrier()
        return final


class _Picture:
    """The pictures of a run. A failure to draw one warns once and never stops the training."""

    def __init__(self, log: Log, run: Run, print_fn: PrintFn) -> None:
        self.log, self.run, self.print_fn = log, run, print_fn
        self.warned = False

    def draw(self) -> None:
        try:
            self.log.draw()
        except Exception as error:
            if not self.warned:
                self.print_fn(
                    f"\nWARNING: the pictures could not be written; training continues: {error}"
                )
            self.warned = True


class _Clock:
    """Seconds per step, and of them waited for data: means over the steps since its creation."""

    def __init__(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of what is done in it counts as waiting."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Right only after the device was waited for."""
        return {
            "seconds": (time.perf_counter() - self.began) / self.steps,
            "waited": self.waited / self.steps,
        }


def _check_skipped(run: Run, losses: dict[str, Tensor], steps: int, print_fn: PrintFn) -> bool:
    """Whether the last step was skipped; warns once, and of what was skipped in the `steps` since
    the last look.
    """
    in_a_row, since = run.skipped()
    if dist.is_main() and (0 < in_a_row <= steps or in_a_row >= PATIENCE):
        _warn_skipping(run.step, losses, print_fn)
    elif dist.is_main() and since and not in_a_row:
        _warn_skipped(run.step, since, print_fn)
    if in_a_row >= PATIENCE:
        raise Diverged(
            f"no finite gradient for {PATIENCE} steps in a row, up to step {run.step}. "
            f"{WHEN_DIVERGED}"
        )
    return in_a_row > 0


def _warn_skipped(step: int, count: int, print_fn: PrintFn) -> None:
    print_fn(
        f"\nWARNING: {count} of the steps up to step {step} had a gradient that is not "
        f"finite and were skipped. {WHEN_DIVERGED}"
    )


def _warn_skipping(step: int, losses: dict[str, Tensor], print_fn: PrintFn) -> None:
    shown = {name: float(value) for name, value in losses.items()}
    print_fn(
        f"\nWARNING: the gradient of step {step} is not finite, losses {shown}; the step "
        f"was skipped. {WHEN_DIVERGED}"
    )
