"""What a run writes while it runs: log.jsonl, the two pictures, and boards where asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnssl import dist, files
from nnssl.modules.running import discard_all
from nnssl.train import batches, boards, pictures
from nnssl.train.run import Run

LOG = "log.jsonl"
HOUR = 3600.0  # seconds


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min" or "2 d 7 h"."""
    minutes, hours = round(seconds / 60), round(seconds / HOUR)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
    )


class Log:
    """The log of one run; rows beyond the step that a resume starts from are dropped."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self.path = run.folder / LOG
        self.last: dict = {}
        self.paced = False
        self.boards: list[boards.Board] = []
        if not dist.is_main():
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        kept = (
            [row for row in files.read_json_lines(self.path) if row["step"] <= run.step]
            if self.path.exists()
            else []
        )
        self.last = kept[-1] if kept else {}
        files.write_json_lines(self.path, kept)
        self.boards = boards.boards(run)

    def row(
        self,
        losses: dict,
        monitored: dict,
        *,
        norm: float,
        rate: float,
        seconds: float,
        waited: float,
        rejected: int,
    ) -> dict:
        """One row of log.jsonl, averaged over processes."""
        run, config = self.run, self.run.config
        values = {
            **{name: float(value) for name, value in losses.items()},
            **run.monitors.read(monitored),
        }
        values["data_wait"] = waited / seconds  # fraction of the step
        # crops redrawn for lack of body
        values["rejected"] = rejected / (config.batch_size / dist.world_size())
        # where NCCL and gloo look; mps knows no float64
        on = "cuda" if run.device.type == "cuda" else "cpu"
        averaged = dist.all_reduce_mean(
            torch.tensor(list(values.values()), dtype=torch.float64, device=on)
        ).tolist()
        row = {
            "step": run.step,
            "epoch": round(run.step * config.batch_size / len(run.crops), 3),
            **dict(zip(values, averaged, strict=True)),
            "lr": rate,
            "grad_norm": norm,
            "samples_per_second": config.batch_size / seconds,
            **self._used(config.batch_size / seconds),
            **run.ask_probe(),
        }
        if alarms := run.monitors.alarms(row):
            row["alarm"] = "; ".join(alarms)
            if dist.is_main():
                self.say(
                    f"\nWARNING: this run may have collapsed at step {run.step}: {row['alarm']}"
                )
        self.last = row
        if dist.is_main():
            files.append_json_line(self.path, row)
        for board in self.boards:
            board.add(row, run.step)
        return row

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
        shorter = (
            "; shorter: fewer --steps, a smaller --crop or preset (-a tiny), a smaller --batch-size"
        )
        self.say(
            f"\n{step:.2g} s per step: {duration(total)} to go{shorter if total > HOUR else ''}"
        )

    def draw(self) -> None:
        """progress.png, and views.png: what the method looks at and predicts."""
        if not dist.is_main():
            return
        run = self.run
        pictures.progress(
            files.read_json_lines(self.path), run.folder / "progress.png", run.header["method"]
        )
        samples = batches.collate([run.crops[index] for index in range(2)])
        with run.looking(), torch.no_grad():
            volumes = run.method.show(run.prepare_views(samples))
            # rank zero alone draws, and a resumed run does not: no running moment may move
            discard_all(run.method)
        path = run.folder / "views.png"
        pictures.views({k: v.float().cpu() for k, v in volumes.items()}, path)
        pictures.keep(path, run.step)
