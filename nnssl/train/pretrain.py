"""From options to a finished run: prepare the scans, build the run, train, write the checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from nnssl import dist, files, signals
from nnssl.cpu.products import by_onednn
from nnssl.data.plan import Plan
from nnssl.host_memory import keep_freed_memory
from nnssl.train import distributed, earlier_run, mistakes, parcels_choice
from nnssl.train.build import build_run
from nnssl.train.loop import train
from nnssl.train.pictures import VIEWS
from nnssl.train.places import data_folder, results_folder
from nnssl.train.prepared_scans import prepare_scans, stored_plan
from nnssl.train.pretrain_options import Options
from nnssl.train.run import FINAL, LATEST
from nnssl.types import PrintFn

SOME_SEE = (
    "is there for some of the processes only: nnUNet_results, or the folder of -o, must be on a "
    "disk that all machines see"
)


def pretrain(options: Options, print_fn: PrintFn = print) -> Path | None:
    """Run `options` to the end; the final checkpoint, or None with `only_prepare`.

    Raises ValueError for options that cannot work, files.LockedError when another process trains in
    the same folder, Interrupted and Diverged as `train` does; Interrupted while it prepares as
    well.
    """
    with signals.handled(_stop), ExitStack() as held:
        if not options.only_prepare or options.num_parts == 1:  # parts need not know of each other
            distributed.require_one_launcher()
        device = distributed.choose_device(options.device)
        keep_freed_memory()
        distributed.init_process_group(device)
        final = _pretrain(options, device, print_fn if dist.is_main() else _silent, held)
        # not after an error of this process alone: the others would be waited for
        distributed.destroy_process_group()
        return final


def _pretrain(
    options: Options, device: torch.device, print_fn: PrintFn, held: ExitStack
) -> Path | None:
    mistakes.refuse(options, device)
    name, folder = data_folder(options)
    plan = distributed.rank_zero_first(
        lambda: _prepare(options, name, folder, print_fn), lambda: stored_plan(folder)
    )
    if options.only_prepare:
        return None
    results = results_folder(options, plan.name)
    distributed.rank_zero_first(lambda: _lock(results, held))
    there = (results / LATEST).exists()
    distributed.require_same(there, device, f"{results / LATEST} {SOME_SEE}")
    earlier = earlier_run.read_earlier_run(results, options, folder, plan, print_fn)
    from_scans = distributed.rank_zero_first(
        lambda: parcels_choice.choose(options, plan, folder, earlier, print_fn)
    )
    with by_onednn(device, exact=options.fp32):
        run = build_run(options, plan, folder, device, earlier, from_scans, print_fn)
        train(run, print_fn)
    final = run.folder / FINAL
    print_fn(f"finished: {final}\nlook at it with: nnssl_inspect {files.quoted(final)}")
    return final


def _prepare(options: Options, name: str, folder: Path, print_fn: PrintFn) -> Plan:
    """`prepare_scans`, unless a run is in the way: that is known before hours of preprocessing."""
    if not options.only_prepare:
        earlier_run.require_free(results_folder(options, name), options.resume)
    return prepare_scans(options, name, folder, print_fn)


def _lock(folder: Path, held: ExitStack) -> None:
    """Lock the results for this run, and remove what a killed one left half written."""
    if dist.is_main():
        hint = "wait for it or stop it, or choose another folder with -o"
        held.enter_context(files.locked(folder, hint))
        files.sweep(folder, folder / VIEWS)


def _stop(*_: object) -> None:
    raise signals.Interrupted("stopped; the same command with --c continues from there")


def _silent(_: str) -> None:
    """Ranks other than zero print nothing."""
