"""From options to a run that can be trained: crops, method, batch size, header, probe."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import nnssl
from nnssl import dist
from nnssl.checkpoint.describe import describe_start
from nnssl.data import parcel_maps
from nnssl.data.crops import Crops
from nnssl.data.plan import Plan
from nnssl.encoder.swin import Swin
from nnssl.methods import Method
from nnssl.train import (
    batches,
    boards,
    cache,
    configure,
    distributed,
    initial_encoder,
    mistakes,
    parcels_choice,
    peak,
)
from nnssl.train.earlier_run import EarlierRun
from nnssl.train.places import dimensions, raw_dataset, results_folder
from nnssl.train.precision import half_precision
from nnssl.train.pretrain_options import DEFAULT_STEPS, PROBES, Options
from nnssl.train.probe import Probe
from nnssl.train.run import LATEST, Run, RunConfig
from nnssl.types import PrintFn, Shape, Spacing
from nnssl.views.intensity import Ranges

OTHER_SCANS = (
    "the machines have different preprocessed scans: put nnUNet_preprocessed on a disk that all "
    "of them see, or prepare each with the same scans (--only-prepare)"
)


def build_run(
    options: Options,
    plan: Plan,
    data: Path,
    device: torch.device,
    earlier: EarlierRun,
    from_scans: Sequence[configure.Choice],
    print_fn: PrintFn,
) -> Run:
    """The run that `options` describe, resumed with `--c`.

    data:       the folder of the preprocessed scans.
    earlier:    the run that continues, or an empty one.
    from_scans: settings that were already chosen, from the scans themselves.
    """
    builder = _Builder(options, plan, data, device, earlier, from_scans)
    mistakes.require_graph(options, device, builder.accumulate)  # with --c that of the run before
    distributed.require_same((plan.fingerprint, builder.crops.cases), device, OTHER_SCANS)
    configure.check_scans(builder.kind, len(builder.crops), print_fn)
    # before the batch is sized, which takes of the memory that is left
    cache.hold(builder.crops, plan, options.cache, device, print_fn)
    sized = builder.sized(print_fn)
    configure.warn_small(sized.method, sized.batch_size, builder.accumulate, print_fn)
    run = builder.run(sized)
    if options.resume:
        _resume(run, print_fn)
    configure.print_choices(sized.choices, print_fn)
    print_fn(_summary(run, plan))
    return run


@dataclass(frozen=True)
class _Sized:
    """A method with the settings derived for a batch size.

    started: the header's entry on the encoder's start.
    choices: the settings that were chosen here.
    """

    method: Method
    started: dict
    choices: list[configure.Choice]
    batch_size: int


@dataclass(frozen=True)
class _Builder:
    """The arguments of `build_run`, and what follows from them."""

    options: Options
    plan: Plan
    data: Path
    device: torch.device
    earlier: EarlierRun
    from_scans: Sequence[configure.Choice]

    @property
    def kind(self) -> type[Method]:
        return mistakes.method_class(self.options.method)

    @property
    def dims(self) -> int:
        return len(self.earlier.crop) or dimensions(self.options)

    @property
    def bf16(self) -> bool:
        return not self.options.fp32 and half_precision(self.device) == torch.bfloat16

    @property
    def accumulate(self) -> int:
        return self.options.accumulate or self.earlier.run.get("accumulate", 1)

    @cached_property
    def crop(self) -> Shape:
        """Voxels: as typed, as the run that continues has it, or fitted to the plan's."""
        return (
            self.options.crop
            or self.earlier.crop
            or configure.fitting_crop(
                self.kind, self.plan.crop[-self.dims :], self.options.settings
            )
        )

    @cached_property
    def parcel_cases(self) -> list[str] | None:
        """The scans that have parcels, for a run that learns from them."""
        return parcels_choice.parcel_case_ids(
            self.options, self.plan, self.data, self.earlier, self.from_scans
        )

    @cached_property
    def crops(self) -> Crops:
        return Crops(
            self.data,
            self.plan,
            self.kind.region(self.crop),
            self.options.seed,
            self.earlier.cases or self.parcel_cases,
            parcels=self.parcel_cases is not None,
        )

    def steps(self, batch_size: int) -> int:
        return steps_of(self.options, self.earlier.run, len(self.crops), batch_size)

    def sized(self, print_fn: PrintFn) -> _Sized:
        """The method with the batch size that was typed, was used before, or fits."""
        given = self.options.batch_size or self.earlier.run.get("batch_size")
        if given is not None:
            return self._method(given)
        trial = self._method(configure.TRIAL_BATCH).method
        fits, reason = configure.batch_size(trial, self.crop, self.device, self.bf16)
        batch_size = fits * dist.world_size() * self.accumulate
        print_fn(f"batch size: {batch_size} ({reason}; --batch-size N chooses another)")
        return self._method(batch_size)

    def _method(self, batch_size: int) -> _Sized:
        options, sizes = self.options, self._sizes(batch_size)
        config, choices = configure.configure(
            self.kind, options.settings, sizes, self.earlier.method_config, self.from_scans
        )
        if not self.earlier.method_config:  # a run that continues is as it began
            configure.require_visible(config, self.crop)
        torch.manual_seed(batches.mixed_seed(options.seed, "weights"))
        encoder, started = self._encoder(config.drop_path)
        method = self.kind(encoder, config).to(self.device)
        method.ranges = Ranges.of(self.plan.hu)
        return _Sized(method, started, choices, batch_size)

    def _encoder(self, drop_path: float) -> tuple[Swin, dict]:
        options, earlier = self.options, self.earlier
        if earlier.encoder:
            own = initial_encoder.of_run(earlier.encoder, drop_path, options.checkpointing)
            return own, earlier.started
        return initial_encoder.encoder(
            options.preset, options.start, self.dims, drop_path, options.checkpointing
        )

    def _sizes(self, batch_size: int) -> configure.Sizes:
        spacing, scans = self.plan.spacing[-self.dims :], len(self.crops)
        return configure.Sizes(self.crop, spacing, scans, self.steps(batch_size), batch_size)

    def run(self, sized: _Sized) -> Run:
        config = self._run_config(sized.batch_size)
        header = self._header(sized.started)
        probe = self._probe(config.steps)
        fraction = peak.fraction_of_peak_per_scan(sized.method, self.crop, self.device)
        folder, cases = results_folder(self.options, self.plan.name), self.crops.cases
        return Run(
            sized.method, self.crops, config, folder, header, self.device, probe, cases, fraction
        )

    def _run_config(self, batch_size: int) -> RunConfig:
        return RunConfig.of(
            self.options,
            steps=self.steps(batch_size),
            batch_size=batch_size,
            accumulate=self.accumulate,
            workers=self._workers(),
            bf16=self.bf16,
            wandb=self.options.wandb or boards.wandb_enabled(),
        )

    def _workers(self) -> int:
        typed = self.options.workers
        return batches.default_workers(self.device) if typed is None else typed

    def _header(self, started: dict) -> dict:
        """The checkpoint's, as far as it is known before the first step."""
        return {
            "method": self.options.method,
            "preset": self.options.preset,
            "crop": list(self.crop),
            "plan": self._plan_entry(),
            "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
            "created": time.strftime("%Y-%m-%d"),
            **self._parcels_entry(),
            **started,
        }

    def _parcels_entry(self) -> dict[str, str]:
        if self.parcel_cases is None:
            return {}
        return {"parcels": parcel_maps.identity(self.data)}

    def _plan_entry(self) -> dict:
        plan = self.plan
        return {
            "name": plan.name,
            "fingerprint": plan.fingerprint,
            "spacing": list(plan.spacing),
            "hu": plan.hu and plan.hu.to_dict(),
            "cases": len(self.crops),
        }

    def _probe(self, steps: int) -> Probe | None:
        """Every process has one and so knows its steps; only rank zero evaluates it."""
        if self.options.probe is None:
            return None
        dataset = raw_dataset(self.options.probe, "--probe").name
        every = self.options.probe_every or max(1, steps // PROBES)
        return Probe(self.data / f"probe_{dataset}", self.crop, every)


def steps_of(options: Options, before: dict, cases: int, batch_size: int) -> int:
    """Optimiser steps: as typed, from --epochs, or those of the run that continues (`before`)."""
    if options.steps is not None:
        return options.steps
    if options.epochs is not None:
        return math.ceil(options.epochs * cases / batch_size)
    return before.get("steps", DEFAULT_STEPS)


def _resume(run: Run, print_fn: PrintFn) -> None:
    if not (run.folder / LATEST).exists():
        return print_fn(f"no run to continue in {run.folder}: starting from step 0")
    changes = run.resume()
    return print_fn("\n".join([f"continuing at step {run.step} of {run.config.steps}", *changes]))


def _summary(run: Run, plan: Plan) -> str:
    config, header = run.config, run.header
    precision = " in bf16" if config.bf16 else ""
    return (
        f"{header['method']} on {len(run.crops)} scans: encoder {_encoder_of(run)}, "
        f"crop {_crop_at(header['crop'], plan.spacing)}, {config.steps} steps of "
        f"{config.batch_size} scans, {run.device}{precision}, {dist.world_size()} process(es)\n"
        f"{_started_from(header)}results: {run.folder}"
    )


def _started_from(header: dict) -> str:
    """A line of its own; nothing where the start is random."""
    if (start := header.get("start")) is None:
        return ""
    return f"its encoder starts from {describe_start(start)}\n"


def _encoder_of(run: Run) -> str:
    parameters = sum(p.numel() for p in run.method.encoder.parameters()) / 1e6
    return f"{run.header['preset']} ({parameters:.1f} M parameters)"


def _crop_at(crop: Sequence[int], spacing: Spacing) -> str:
    return f"{'x'.join(map(str, crop))} at {'x'.join(f'{mm:g}' for mm in spacing)} mm"
