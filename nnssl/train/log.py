"""The log of a run: log.jsonl, the two pictures, and dashboards if enabled."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl import dist, files
from nnssl.modules.running import discard_all
from nnssl.train import batches, boards, pictures
from nnssl.train.graph import StepResult
from nnssl.train.run import Run
from nnssl.types import PrintFn

LOG = "log.jsonl"
HOUR = 3600.0  # seconds
SHORTER = "; shorter: fewer --steps, a smaller --crop or preset (-a tiny), a smaller --batch-size"


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min" or "2 d 7 h"."""
    minutes, hours = round(seconds / 60), round(seconds / HOUR)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    # where NCCL and gloo look; mps knows no float64
    on = "cuda" if device.type == "cuda" else "cpu"
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=on)
    return dict(zip(values, dist.all_reduce_mean(own).tolist(), strict=True))


class Log:
    """The log of one run; rows beyond the step that a resume starts from are dropped."""

    def __init__(self, run: Run, print_fn: PrintFn) -> None:
        self.run, self.print_fn = run, print_fn
        self.path = run.folder / LOG
        self.last: dict = {}
        self.paced = False
        self.boards: list[boards.Board] = []
        if not dist.is_main():
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        kept = self._rows_before()
        self.last = kept[-1] if kept else {}
        files.write_json_lines(self.path, kept)
        self.boards = boards.boards(self.run)

    def _rows_before(self) -> list[dict]:
        """The rows of the log that is there already, up to the step of the run."""
        if not self.path.exists():
            return []
        return [row for row in files.read_json_lines(self.path) if row["step"] <= self.run.step]

    def row(self, result: StepResult, *, seconds: float, waited: float, rejected: int) -> dict:
        """One row of log.jsonl, averaged over processes.

        seconds, waited: per step, and of them waited for data.
        rejected: crops of this process that were redrawn for lack of body.
        """
        run = self.run
        norm, speed = float(result.norm), run.config.batch_size / seconds
        row = {
            "step": run.step,
            "epoch": self._epoch(),
            **self._averaged(result, waited / seconds, rejected),
            "lr": result.rate,
            "grad_norm": norm,
            "samples_per_second": speed,
            **self._used(speed),
            **run.evaluate_probe(),
        }
        self._add_alarms(row)
        self._write(row)
        return row

    def _epoch(self) -> float:
        run = self.run
        return round(run.step * run.config.batch_size / len(run.crops), 3)

    def _averaged(self, result: StepResult, data_wait: float, rejected: int) -> dict[str, float]:
        """What each process measures for itself: the mean over processes."""
        run, config = self.run, self.run.config
        values = {
            **{name: float(value) for name, value in result.losses.items()},
            **run.monitors.read(result.monitored),
            "data_wait": data_wait,  # fraction of the step
            "rejected": rejected / (config.batch_size / dist.world_size()),
        }
        return _mean_over_processes(values, run.device)

    def _add_alarms(self, row: dict) -> None:
        if alarms := self.run.monitors.alarms(row, self.run.method):
            row["alarm"] = "; ".join(alarms)
            if dist.is_main():
                self.print_fn(f"\nWARNING at step {row['step']}: {row['alarm']}")

    def _write(self, row: dict) -> None:
        self.last = row
        if dist.is_main():
            files.append_json_line(self.path, row)
        for board in self.boards:
            board.add(row, row["step"])

    def close(self) -> None:
        for board in self.boards:
            board.close()

    def _used(self, speed: float) -> dict[str, float]:
        """At `speed` scans per second: the fraction of the devices' peak, where that is known."""
        fraction = self.run.fraction_of_peak_per_scan
        return {"of_peak": speed * fraction} if fraction else {}

    def pace(self, step: float) -> None:
        """At the first row: how long the run will take at `step` seconds per step, and what is
        shorter.
        """
        left = self.run.config.steps - self.run.step
        if self.paced or not left or not dist.is_main():
            return
        self.paced, total = True, step * left
        shorter = SHORTER if total > HOUR else ""
        self.print_fn(f"\n{step:.2g} s per step: {duration(total)} left{shorter}")

    def draw(self) -> None:
        """progress.png, and views.png: the method's inputs and predictions."""
        if not dist.is_main():
            return
        run = self.run
        rows, views = files.read_json_lines(self.path), run.folder / "views.png"
        pictures.progress(rows, run.folder / "progress.png", run.header["method"])
        pictures.views(self._volumes(), views)
        pictures.keep(views, run.step)

    def _volumes(self) -> dict[str, Tensor]:
        """The method's pictures of the first two crops, on the CPU."""
        run = self.run
        samples = batches.collate([run.crops[index] for index in range(2)])
        with run.evaluation_mode(), torch.no_grad():
            try:
                volumes = run.method.show(run.prepare_views(samples))
            finally:
                # rank zero alone draws, and a resumed run does not: no running moment may move
                discard_all(run.method)
        return {name: volume.float().cpu() for name, volume in volumes.items()}
