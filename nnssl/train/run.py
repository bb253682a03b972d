"""A run: its model, its progress, one training step, saving and resuming."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnssl import checkpoint, dist
from nnssl.cpu.products import by_onednn
from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, Step
from nnssl.modules.replay import happen
from nnssl.modules.running import decide
from nnssl.train import batches, optimiser
from nnssl.train.best import best_so_far
from nnssl.train.graph import StepResult
from nnssl.train.header_metrics import header_metrics
from nnssl.train.learning_rate import learning_rate
from nnssl.train.monitors import Monitors
from nnssl.train.precision import Precision
from nnssl.train.run_config import RunConfig, what_changed
from nnssl.train.same import holds, load_weights, read_run, require_same_run
from nnssl.train.skipped import SkippedSteps
from nnssl.types import FINAL

if TYPE_CHECKING:  # it reads files, for which a benchmark has no library
    from nnssl.data.crops import Crops
    from nnssl.train.probe import Probe

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
WHEN_DIVERGED = (
    "What helps: a new run (-o FOLDER), also from the encoder of the last save (--from "
    "checkpoint_latest.pth), with a lower learning rate (--set lr=1e-4) or stronger clipping "
    "(--set clip_norm=0.3). Look for scans with extreme values in report.csv"
)


class Diverged(RuntimeError):
    """The gradient was not finite for many steps in a row; the last good checkpoint is kept."""


class Run:
    """One pretraining run: its model, its progress, and its results folder."""

    def __init__(
        self,
        method: Method,
        crops: batches.Samples,
        config: RunConfig,
        folder: Path,
        header: dict,
        device: torch.device,
        probe: Probe | None = None,
        cases: Sequence[str] = (),
        fraction_of_peak_per_scan: float = 0.0,
    ) -> None:
        self.method = method.to(device).train()
        self.crops, self.config, self.folder, self.device = crops, config, Path(folder), device
        self.header = {**header, "run": asdict(config), "method_config": asdict(method.config)}
        self.optimizer = optimiser.adamw(method, method.config, device, config.graph)
        self.precision = Precision(method, device, torch.bfloat16 if config.bf16 else None)
        self.monitors = Monitors()
        self.probe = probe
        self.cases = cases  # ids of the scans, which a resumed run continues on
        # that one scan a second takes; 0: not known
        self.fraction_of_peak_per_scan = fraction_of_peak_per_scan
        self.probed: dict = {}  # the probe's last result and its best
        self.step = 0
        self._skipped = SkippedSteps(device)
        if config.compile:
            _compile_encoders(method)
        self.model = dist.data_parallel(method)

    # -- one step

    def gradients(self, micro_batches: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Backward over all parts of one step; the mean losses (detached) and what is monitored: of
        a scalar the mean over the parts, of all else the last part's.
        """
        self.begin_step()
        views = (self.prepare_views(batch) for batch in micro_batches)
        losses, monitored = self.backward(views, len(micro_batches))
        for part in monitored:
            self.monitors.record(part)
        if len(monitored) == 1:
            return losses, monitored[0]
        names = [name for name, value in monitored[-1].items() if value.dim() == 0]
        means = {name: torch.stack([part[name] for part in monitored]).mean() for name in names}
        return losses, monitored[-1] | means

    def begin_step(self) -> None:
        """The host's part of a step: clear gradients and seed the step's own random generator."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(batches.mixed_seed(self.config.seed, "step", self.step, dist.rank()))

    def backward(
        self, views: Iterable[dict[str, Tensor]], parts: int
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """The mean losses (detached) of the `parts` of a step, and what each monitors."""
        sums: dict[str, Tensor] = {}
        monitored = []
        with self.precision.weights():
            for part, view in enumerate(views, start=1):
                with self._unsynchronised() if part < parts else nullcontext():
                    out = self._backward_part(view, parts)
                monitored.append(out.monitored)
                for name, value in out.losses.items():
                    value = value.detach()
                    sums[name] = sums[name] + value if name in sums else value
        means = sums if parts == 1 else {name: value / parts for name, value in sums.items()}
        return means, monitored

    def _unsynchronised(self) -> AbstractContextManager:
        """Inside, gradients are not exchanged: that is done once per step, at its last part."""
        model = self.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _backward_part(self, view: dict[str, Tensor], parts: int) -> Step:
        with self.precision.autocast():
            out: Step = self.model(view)
        total = out.losses["total"]
        (total if parts == 1 else total / parts).backward()
        return out

    def advance(self, micro_batches: list[dict]) -> StepResult:
        """One step."""
        losses, monitored = self.gradients(micro_batches)
        return StepResult(losses, monitored, *self.update())

    def rate(self) -> float:
        """The learning rate of the step that is next."""
        config = self.config
        return learning_rate(self.method.config, self.step, config.steps, config.batch_size)

    def update(self) -> tuple[Tensor, float]:
        """Clip, step, move teachers; the gradient's norm, on the device, and the learning rate.

        A gradient that is not finite moves nothing but the schedules. Whether it is, only the
        device knows: the optimiser and all `Stepped` state switch there, so that the host need
        not wait for it.
        """
        rate, weights = self.rate(), list(self.method.parameters())
        norm, finite = optimiser.clip_and_step(
            self.optimizer, weights, self.device, self.method.config.clip_norm, self.rate
        )
        happen(self._count_step)
        decide(self.method, finite)
        self.method.after_step(self.step / self.config.steps)
        decide(self.method, None)
        self._skipped.count(finite)
        return norm, rate

    def _count_step(self) -> None:
        self.step += 1
        self.method.progress = self.step / self.config.steps

    def skipped(self) -> tuple[int, int]:
        """How many of the last steps in a row were skipped, and how many since the last call; waits
        for the device.
        """
        return self._skipped.read()

    def prepare_views(self, batch: dict) -> dict[str, Tensor]:
        """What the method looks at in `batch`, on the device: samples of `crops`, collated."""
        if "crop" not in batch:  # the collection is on the device
            batch = cast("Crops", self.crops).cut(batch)
        regions = batch["crop"].to(self.device, non_blocking=True).float()
        generators = [
            batches.generator_for(self.config.seed, index) for index in batch["index"].tolist()
        ]
        scans = batch["scan"].to(self.device, non_blocking=True)
        where = batch["start"], batch["size"], batch.get("parcels")
        with by_onednn(self.device, exact=True):  # a scan's views are the same in every batch
            return self.method.prepare_views(regions, generators, scans, *where)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Inside, the method is in evaluation mode, and a compiled encoder runs uncompiled: for
        other shapes it would be compiled again, which takes a minute or two, at the last step too.
        """
        stance = torch.compiler.set_stance if self.config.compile else nullcontext
        self.method.eval()
        try:
            with stance("force_eager"):
                yield
        finally:
            self.method.train()

    # -- the probe

    def probes(self) -> bool:
        return self.probe is not None and self.probe.due(self.step, self.config.steps)

    def evaluate_probe(self) -> dict[str, float]:
        """At its steps, the probe's Dice of the encoder that would be exported now; evaluated by
        rank zero.
        """
        if self.probe is None or not self.probes():
            return {}
        found = {}
        if dist.is_main():
            with self.evaluation_mode():
                found = self.probe.evaluate(self.method.encoder, self.device, self.config.bf16)
        dist.barrier()
        return found

    def keep_best(self, metrics: dict) -> None:
        """checkpoint_best.pth, when the probe in `metrics` is better than at any earlier step on
        the same cases.
        """
        if self.probe is None or "probe_dice" not in metrics:
            return
        self.probed = best_so_far(self.probed, self.probe, self.step, metrics)
        if self.probed["best_step"] == self.step:
            checkpoint.write(self.folder / BEST, self._pack(metrics))

    # -- to and from disk

    def save(self, metrics: dict) -> None:
        """checkpoint_latest.pth: the encoder as in the final checkpoint, and all that a resume
        needs.
        """
        if not dist.is_main():
            return
        content = self._pack(metrics)
        self._require_finite()
        content["training_state"] = self._state()
        checkpoint.write(self.folder / LATEST, content)

    def _require_finite(self) -> None:
        for name, parameter in self.method.named_parameters():
            if not torch.isfinite(parameter).all():
                raise Diverged(f"{name} is not finite; nothing was written. {WHEN_DIVERGED}")

    def _state(self) -> dict:
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitors": self.monitors.state_dict(),
            "probe": self.probed,
            # Not in the header, which goes into the file that is passed on: ids hold names of
            # files.
            "cases": list(self.cases),
        }

    def finish(self, metrics: dict) -> Path:
        """Write checkpoint_final.pth, which nnU-Net's trainers load. One that is there already with
        the same weights stays as it is: plans may know it by its sha256.
        """
        path = self.folder / FINAL
        if dist.is_main() and not holds(path, content := self._pack(metrics)):
            checkpoint.write(path, content)
        return path

    def resume(self) -> list[str]:
        """Continue from checkpoint_latest.pth; what is different from now on, in words.

        Raises ValueError if it belongs to a different run, is already beyond the last step, or
        cannot be continued.
        """
        content = read_run(self.folder / LATEST)
        may_differ, settings = (*RunConfig.FREE, *RunConfig.REPORTED), type(self.method.config)
        require_same_run(content["header"], self.header, settings, self.folder, may_differ)
        state = content["training_state"]
        before = content["header"]["run"]
        self._require_not_beyond(state["step"], before["steps"])
        self._load(state)
        return what_changed(before, self.config, self.step)

    def _require_not_beyond(self, done: int, steps: int) -> None:
        if done > self.config.steps:
            raise ValueError(
                f"the run in {self.folder} has done {done} steps of {steps}, "
                f"more than --steps {self.config.steps}: give a larger number, or leave it out"
            )

    def _load(self, state: dict) -> None:
        load_weights(self.method, state["method"], self.folder / LATEST)
        optimiser.restore(self.optimizer, state["optimizer"], self.device, self.config.graph)
        self.monitors.load_state_dict(state["monitors"])
        self.probed = state.get("probe", {})
        self.step = state["step"]

    def _pack(self, metrics: dict) -> dict:
        header = {**self.header, "step": self.step, "metrics": header_metrics(metrics)}
        if self.probed:
            # their names are file names, which are not passed on
            header["probe"] = {**self.probed, "cases": len(self.probed["cases"])}
        decoder = self.method.network_decoder
        if decoder is not None:
            header["decoder"], decoder = decoder.options, decoder.decoder
        return checkpoint.pack(self.method.encoder, header, [self.method.citation], decoder)


def _compile_encoders(method: Method) -> None:
    for module in method.modules():
        if isinstance(module, Swin):
            module.compile(dynamic=False)  # views have a fixed size, or two of them
