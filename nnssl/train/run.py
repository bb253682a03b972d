"""A run: what is trained, how far it is, one step of it, and its way to disk and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnssl import checkpoint, dist
from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, Step
from nnssl.modules.running import decide
from nnssl.train import batches
from nnssl.train.monitors import Monitors
from nnssl.train.precision import Precision
from nnssl.train.same import require_same_run
from nnssl.train.schedule import clip, learning_rate, parameter_groups
from nnssl.types import FINAL

if TYPE_CHECKING:  # it reads files, for which a benchmark has no library
    from nnssl.data.crops import Crops
    from nnssl.train.probe import Probe

# devices on which PyTorch's AdamW can be told there that a step does not count
FUSED = ("cpu", "cuda")
LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
WHEN_DIVERGED = (
    "Try a lower learning rate (--set lr=1e-4), stronger clipping (--set clip_norm=1.0), and look "
    "for scans with extreme values in report.csv"
)


class Diverged(RuntimeError):
    """The gradient was not finite for many steps in a row; the last good checkpoint is kept."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, how precise; `batch_size`: scans of all processes and parts."""

    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    log_every: int = 10
    save_every: int = 1000
    workers: int = 1
    bf16: bool = False  # `nnssl.train.precision`
    compile: bool = False
    tensorboard: bool = False
    wandb: bool = False

    # How a run is monitored and fed changes no weight, so a resumed run may differ in it.
    FREE = ("log_every", "save_every", "workers", "tensorboard", "wandb")
    # These do, but a run that could not continue for them would be lost: it continues and says so.
    TOLD = ("steps", "bf16", "compile")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Run:
    """One pretraining run: what is trained, how far it is, and where it is written."""

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
        self.optimizer = torch.optim.AdamW(
            parameter_groups(method, method.config.weight_decay),
            betas=(0.9, method.config.beta2),
            fused=device.type in FUSED,
        )
        self.precision = Precision(method, device, torch.bfloat16 if config.bf16 else None)
        self.monitors = Monitors()
        self.probe = probe
        self.cases = cases  # ids of the scans, which a resumed run continues on
        # that one scan a second takes; 0: not known
        self.fraction_of_peak_per_scan = fraction_of_peak_per_scan
        self.probed: dict = {}  # what the probe last said, and what its best was
        self.step = 0
        # How many of the last steps in a row, and how many since the last look, had a gradient that
        # is not finite.
        self._skipped = torch.zeros(2, dtype=torch.long, device=device)
        if config.compile:
            for module in method.modules():
                if isinstance(module, Swin):
                    module.compile(dynamic=False)  # views have a fixed size, or two of them
        self.model: nn.Module = method
        if dist.is_initialized():
            self.model = DistributedDataParallel(method, broadcast_buffers=False)

    # -- one step

    def gradients(self, micro_batches: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Backward over all parts of one step; the mean losses (detached) and what the last part
        has to watch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(batches.mixed_seed(self.config.seed, "step", self.step, dist.rank()))
        parts = len(micro_batches)
        sums: dict[str, Tensor] = {}
        with self.precision.weights():
            for part, batch in enumerate(micro_batches):
                model, last = self.model, part == parts - 1
                with (
                    nullcontext()
                    if last or not isinstance(model, DistributedDataParallel)
                    else model.no_sync()
                ):
                    out = self._look(batch)
                    (out.losses["total"] / parts).backward()
                self.monitors.note(out.monitored)
                for name, value in out.losses.items():
                    sums[name] = sums.get(name, 0) + value.detach() / parts
        return sums, out.monitored

    def update(self) -> tuple[Tensor, float]:
        """Clip, step, move teachers; the gradient's norm, on the device, and the learning rate.

        A gradient that is not finite moves nothing but the schedules. Whether it is, only the
        device knows: the optimiser and all `Stepped` state are told there, so that the host need
        not wait for it.
        """
        config = self.method.config
        rate = learning_rate(config, self.step, self.config.steps, self.config.batch_size)
        norm = clip(self.method.parameters(), config.clip_norm)
        finite = norm.isfinite()
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.device.type in FUSED:
            # the word of PyTorch's own scaler: then no weight moves
            self.optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif finite:
            self.optimizer.step()
        decide(self.method, finite)
        self.method.after_step(self.step / self.config.steps)
        decide(self.method, None)
        self._skipped = torch.stack([(self._skipped[0] + 1) * ~finite, self._skipped[1] + ~finite])
        return norm, rate

    def skipped(self) -> tuple[int, int]:
        """How many of the last steps in a row were skipped, and how many since this was last asked;
        waits.
        """
        in_a_row, since = self._skipped.tolist()
        self._skipped[1] = 0
        return in_a_row, since

    def prepare_views(self, batch: dict) -> dict[str, Tensor]:
        """What the method looks at in `batch`, on the device: samples of `crops`, collated."""
        if "crop" not in batch:  # the collection is on the device
            batch = cast("Crops", self.crops).cut(batch)
        regions = batch["crop"].to(self.device, non_blocking=True).float()
        generators = [
            batches.generator_for(self.config.seed, index) for index in batch["index"].tolist()
        ]
        scans = batch["scan"].to(self.device, non_blocking=True)
        return self.method.prepare_views(
            regions, generators, scans, batch["start"], batch["size"], batch.get("parcels")
        )

    def _look(self, batch: dict) -> Step:
        views = self.prepare_views(batch)
        with self.precision.autocast():
            return self.model(views)

    @contextmanager
    def looking(self) -> Iterator[None]:
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

    def ask_probe(self) -> dict[str, float]:
        """At its steps, what the probe says of the encoder that would be exported now; the first
        process asks.
        """
        if self.probe is None or not self.probes():
            return {}
        found = {}
        if dist.is_main():
            with self.looking():
                found = self.probe.ask(self.method.encoder, self.device, self.config.bf16)
        dist.barrier()
        return found

    def keep_best(self, metrics: dict) -> None:
        """checkpoint_best.pth, when the probe in `metrics` is better than at any earlier step on
        the same cases.
        """
        if self.probe is None or "probe_dice" not in metrics:
            return
        told = {name: value for name, value in metrics.items() if name.startswith("probe_")}
        now = {"dataset": self.probe.dataset, "cases": self.probe.cases, "step": self.step, **told}
        before = self.probed if self.probed.get("cases") == now["cases"] else {}
        better = told["probe_dice"] > before.get("best", -1.0)
        best = {"best": told["probe_dice"], "best_step": self.step} if better else {}
        self.probed = {
            "best": before.get("best"),
            "best_step": before.get("best_step"),
            **now,
            **best,
        }
        if better:
            checkpoint.write(self.folder / BEST, self._pack(metrics))

    # -- to and from disk

    def save(self, metrics: dict) -> None:
        """checkpoint_latest.pth: the encoder as in the final checkpoint, and all that a resume
        needs.
        """
        if not dist.is_main():
            return
        content = self._pack(metrics)
        broken = [n for n, p in self.method.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise Diverged(f"{broken[0]} is not finite; nothing was written. {WHEN_DIVERGED}")
        content["training_state"] = {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitors": self.monitors.state_dict(),
            "probe": self.probed,
            # Not in the header, which goes into the file that is passed on: ids hold names of
            # files.
            "cases": list(self.cases),
        }
        checkpoint.write(self.folder / LATEST, content)

    def finish(self, metrics: dict) -> Path:
        """checkpoint_final.pth: what nnU-Net's trainers take."""
        if dist.is_main():
            checkpoint.write(self.folder / FINAL, self._pack(metrics))
        return self.folder / FINAL

    def resume(self) -> list[str]:
        """Continue from checkpoint_latest.pth; what is different from now on, in words.

        Raises ValueError when it is of another run than this one, or already beyond its last step.
        """
        content = checkpoint.read(self.folder / LATEST)
        may_differ = (*RunConfig.FREE, *RunConfig.TOLD)
        require_same_run(content["header"], self.header, self.folder, may_differ)
        state = content["training_state"]
        before = content["header"]["run"]
        if state["step"] > self.config.steps:
            raise ValueError(
                f"the run in {self.folder} has done {state['step']} steps of {before['steps']}, "
                f"more than --steps {self.config.steps}: give a larger number, or leave it out"
            )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        # as this device needs it, whatever wrote the file
        for group in self.optimizer.param_groups:
            group["fused"] = self.device.type in FUSED
        self.monitors.load_state_dict(state["monitors"])
        self.probed = state.get("probe", {})
        self.step = state["step"]
        told = [f"{name}: was {before[name]}, now {getattr(self.config, name)}" for name in RunConfig.TOLD
                if before.get(name, getattr(self.config, name)) != getattr(self.config, name)]  # fmt: skip
        if before["steps"] != self.config.steps:
            told.append(
                f"the learning rate and all that follows the run's course go from step {self.step} "
                f"on as in a run of {self.config.steps} steps"
            )
        return told

    def _pack(self, metrics: dict) -> dict:
        header = {**self.header, "step": self.step, "metrics": metrics}
        if self.probed:
            header["probe"] = self.probed
        decoder = self.method.network_decoder
        if decoder is not None:
            header["decoder"], decoder = decoder.options, decoder.decoder
        return checkpoint.pack(self.method.encoder, header, [self.method.citation], decoder)
