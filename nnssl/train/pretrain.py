"""From options to a finished run: prepare the scans, build the method, train, write the checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

import nnssl
from nnssl import dist, files, signals
from nnssl.data import parcels
from nnssl.data.crops import Crops
from nnssl.data.labelled import find_labelled, prepare_labelled
from nnssl.data.plan import Plan
from nnssl.data.prepare import prepare
from nnssl.data.raw_datasets import chosen_channels
from nnssl.memory import keep_freed_memory
from nnssl.methods import METHODS, Method
from nnssl.train import (
    batches,
    before,
    boards,
    cache,
    configure,
    graph,
    parcels_choice,
    peak,
    processes,
    start,
)
from nnssl.train.loop import train
from nnssl.train.options import DEFAULT_STEPS, PROBES, Options
from nnssl.train.places import data_folder, dimensions, raw_dataset, results_folder
from nnssl.train.precision import half_precision
from nnssl.train.probe import Probe
from nnssl.train.run import FINAL, LATEST, Run, RunConfig
from nnssl.types import Shape
from nnssl.views.intensity import Ranges


def pretrain(options: Options, say: Callable[[str], None] = print) -> Path | None:
    """Run `options` to the end; the final checkpoint, or None with `only_prepare`.

    Raises ValueError for options that cannot work, files.LockedError when another process trains in
    the same folder, Interrupted and Diverged as `train` does; Interrupted while it prepares as
    well.
    """
    with signals.handled(_stop), ExitStack() as held:
        return _pretrain(options, say, held)


def _pretrain(options: Options, say: Callable[[str], None], held: ExitStack) -> Path | None:
    device = processes.choose_device(options.device)
    keep_freed_memory()
    processes.init_process_group(device)
    speak = say if dist.is_main() else _silent
    try:
        # a mistake is reported before any scan is read
        _method(options.method).Config.parse(options.settings)
        dimensions(options)
        boards.require_packages(options.tensorboard, options.wandb or boards.wandb_enabled())
        cache.check(options.cache, device)
        name, folder = data_folder(options)
        plan = processes.rank_zero_first(lambda: _prepare(options, name, folder, speak))
        if options.only_prepare:
            return None
        results = results_folder(options, plan)
        processes.rank_zero_first(lambda: _take(results, held))
        earlier = before.of(results, options.resume, folder, plan, speak)
        chosen = processes.rank_zero_first(
            lambda: parcels_choice.choose(options, plan, folder, earlier, speak)
        )
        run = build(options, plan, folder, device, earlier, chosen, speak)
        train(run, speak)
        speak(
            f"finished: {run.folder / FINAL}\nlook at it with: nnssl_inspect {run.folder / FINAL}"
        )
        return run.folder / FINAL
    finally:
        processes.destroy_process_group()


def build(
    options: Options,
    plan: Plan,
    data: Path,
    device: torch.device,
    earlier: before.Before,
    decided: Sequence[configure.Choice],
    say: Callable[[str], None],
) -> Run:
    """The run that `options` describe, resumed where asked for; `earlier` is what it was,
    `decided` the choices that were made for it already.
    """
    if options.graph and (reason := graph.why_not(device, options.accumulate)):
        raise ValueError(f"--graph cannot be used: {reason}. Leave it out")
    dims, kind, folder = dimensions(options), _method(options.method), results_folder(options, plan)
    bf16 = not options.fp32 and half_precision(device) == torch.bfloat16
    crop = options.crop or earlier.crop or configure.fitting_crop(kind, plan.crop[-dims:])
    registered = parcels_choice.cases(options, plan, data, earlier, decided)
    with_parcels = registered is not None
    cases = earlier.cases or registered
    crops = Crops(data, plan, kind.region(crop), options.seed, cases, parcels=with_parcels)

    def made(batch: int) -> tuple[Method, dict, list]:
        """The method with what is derived for this batch, its encoder's start, and what was
        derived.
        """
        steps = _steps(options, earlier.run, len(crops), batch)
        sizes = configure.Sizes(crop, plan.spacing[-dims:], len(crops), steps, batch)
        chosen_config, chosen = configure.configure(
            kind, options.settings, sizes, earlier.method_config, decided
        )
        torch.manual_seed(batches.mixed_seed(options.seed, "weights"))
        encoder, started = start.encoder(
            options.preset, options.start, dims, chosen_config.drop_path, options.checkpointing
        )
        built = kind(encoder, chosen_config).to(device)
        built.ranges = Ranges.of(plan.hu)
        return built, started, chosen

    batch_size = options.batch_size or earlier.run.get("batch_size")
    method, started, chosen = made(batch_size or configure.TRIAL_BATCH)
    if batch_size is None:
        fits, reason = configure.batch_size(method, crop, device, bf16)
        batch_size = fits * dist.world_size() * options.accumulate
        say(f"batch size: {batch_size} ({reason}; --batch-size N chooses another)")
        method, started, chosen = made(batch_size)
    configure.warn_small(method, batch_size // options.accumulate, say)
    cache.hold(crops, plan, options.cache, device, say)
    config = RunConfig.of(
        options,
        steps=_steps(options, earlier.run, len(crops), batch_size),
        batch_size=batch_size,
        workers=batches.default_workers(device) if options.workers is None else options.workers,
        bf16=bf16,
        wandb=options.wandb or boards.wandb_enabled(),
    )
    header = {
        "method": options.method,
        "preset": options.preset,
        "crop": list(crop),
        "plan": {
            "name": plan.name,
            "fingerprint": plan.fingerprint,
            "spacing": list(plan.spacing),
            "hu": plan.hu and plan.hu.to_dict(),
            "cases": len(crops),
        },
        "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
        "created": time.strftime("%Y-%m-%d"),
        **({"parcels": parcels.identity(data)} if with_parcels else {}),
        **started,
    }
    probe = _probe(options, data, crop, config.steps)
    fraction = peak.fraction_of_peak_per_scan(method, crop, device)
    run = Run(method, crops, config, folder, header, device, probe, crops.cases, fraction)
    if options.resume and (folder / LATEST).exists():
        changes = run.resume()
        say("\n".join([f"continuing at step {run.step} of {config.steps}", *changes]))
    elif options.resume:
        say(f"nothing to continue in {folder}: starting again")
    shown = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    configure.tell(chosen, say)
    say(
        f"{options.method} on {len(crops)} scans: encoder {options.preset} ({shown:.1f} M "
        f"parameters), crop {'x'.join(map(str, crop))} at "
        f"{'x'.join(f'{s:g}' for s in plan.spacing)} mm, {config.steps} steps of {batch_size} "
        f"scans, {device}{' in bf16' if bf16 else ''}, {dist.world_size()} process(es)\nresults: "
        f"{folder}"
    )
    return run


def _take(folder: Path, held: ExitStack) -> None:
    """Lock the results for this run, and remove what a killed one left half written."""
    if dist.is_main():
        hint = "wait for it or end it; another run needs another folder, with -o"
        held.enter_context(files.locked(folder, hint))
        files.sweep(folder)


def _stop(*_: object) -> None:
    raise signals.Interrupted("stopped; the same line with --c continues where it was")


def _probe(options: Options, data: Path, crop: Shape, steps: int) -> Probe | None:
    """Every process has one and so knows its steps; the first alone asks it."""
    if options.probe is None:
        return None
    folder = data / f"probe_{raw_dataset(options.probe, '--probe').name}"
    return Probe(folder, crop, options.probe_every or max(1, steps // PROBES))


def _prepare(options: Options, name: str, folder: Path, say: Callable) -> Plan:
    datasets = [raw_dataset(identifier) for identifier in options.dataset_ids]
    if options.channels != (0,) and not datasets:
        raise ValueError(
            "--channels chooses of the datasets of -d, and there is none; in a folder of -i every "
            "file is a scan by itself"
        )
    labelled = None
    if options.probe is not None and options.part_id == 0:
        labelled = find_labelled(raw_dataset(options.probe, "--probe"), options.probe_cases)
    say(f"scans: {', '.join(map(str, [*options.sources, *datasets]))}\npreprocessed: {folder}")
    plan = prepare(
        name,
        folder,
        options.sources,
        datasets,
        spacing=options.spacing,
        clip=options.clip,
        in_hu=_in_hu(options, datasets),
        num_processes=options.num_processes,
        part_id=options.part_id,
        num_parts=options.num_parts,
        update=options.update,
        pattern=options.pattern,
        say=say,
        channels=options.channels,
        check=options.check,
    )
    if labelled is not None:
        say(f"probe: {len(labelled.cases)} labelled cases of {labelled.dataset}")
        prepare_labelled(
            labelled, folder / f"probe_{labelled.dataset}", plan, options.num_processes
        )
    return plan


def _in_hu(options: Options, datasets: Sequence[Path]) -> bool:
    """Whether the scans are CT: not with --no-hu, nor where all scans are of channels that are not,
    by nnU-Net's own rule, the name in dataset.json.

    Raises ValueError for a mixture of both, and for a HU range of what has no HU.
    """
    kinds = [
        (f"channel {number} of {folder.name}", name.lower() == "ct")
        for folder in datasets
        for number, name in chosen_channels(folder, options.channels).items()
    ]
    other = [which for which, is_ct in kinds if not is_ct]
    in_hu = not (options.no_hu or other)
    if not options.no_hu and other and (options.sources or len(other) < len(kinds)):
        raise ValueError(
            f"{', '.join(other)} is not CT (dataset.json), the other scans are: pretrain on one "
            "kind, or say --no-hu to normalise every scan by its own mean and std"
        )
    if options.clip and not in_hu:
        raise ValueError(
            "--hu gives a range of Hounsfield units, and these scans are not CT: leave one of the "
            "two out"
        )
    return in_hu


def _method(name: str) -> type[Method]:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def _steps(options: Options, before: dict, cases: int, batch_size: int) -> int:
    if options.steps is not None:
        return options.steps
    if options.epochs is not None:
        return math.ceil(options.epochs * cases / batch_size)
    return before.get("steps", DEFAULT_STEPS)


def _silent(_: str) -> None:
    """Ranks other than the first say nothing."""
