"""The scans of a pretraining: found, checked to be of one kind, and preprocessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnssl.data.labelled import Labelled, find_labelled, prepare_labelled
from nnssl.data.plan import PLAN, Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.raw_datasets import chosen_channels, is_ct_name
from nnssl.train.places import raw_dataset
from nnssl.train.pretrain_options import Options
from nnssl.types import PrintFn


def prepare_scans(options: Options, name: str, folder: Path, print_fn: PrintFn) -> Plan:
    """Preprocess the scans of `options` into `folder`, and the labelled cases of the probe.

    Raises ValueError where the options do not fit the scans.
    """
    datasets = [raw_dataset(identifier) for identifier in options.dataset_ids]
    _require_datasets(options, datasets)
    in_hu = are_in_hu(options, datasets)
    labelled = _labelled(options, folder, in_hu)
    print_fn(f"scans: {', '.join(map(str, [*options.sources, *datasets]))}\npreprocessed: {folder}")
    plan = prepare(
        PrepareRequest(
            name,
            folder,
            options.sources,
            datasets,
            spacing=options.spacing,
            clip=options.clip,
            in_hu=in_hu,
            num_processes=options.num_processes,
            part_id=options.part_id,
            num_parts=options.num_parts,
            update=options.update,
            pattern=options.pattern,
            print_fn=print_fn,
            channels=options.channels,
            check=options.check,
        )
    )
    if labelled is not None:
        _prepare_probe(labelled, folder, plan, options.num_processes, print_fn)
    return plan


def stored_plan(folder: Path) -> Plan | None:
    """The plan that another process has just completed; None on a machine with its own disk."""
    path = folder / PLAN
    return Plan.load(path) if path.exists() else None


def _prepare_probe(
    labelled: Labelled, folder: Path, plan: Plan, processes: int, print_fn: PrintFn
) -> None:
    print_fn(f"probe: {len(labelled.cases)} labelled cases of {labelled.dataset}")
    prepare_labelled(labelled, folder / f"probe_{labelled.dataset}", plan, processes)


def are_in_hu(options: Options, datasets: Sequence[Path]) -> bool:
    """Whether the scans are CT: not with --no-hu, nor where all scans are of channels that are not,
    by nnU-Net's own rule, the name in dataset.json.

    Raises ValueError for a mixture of both, and for a HU range of what has no HU.
    """
    is_ct = _channels_are_ct(options, datasets)
    other = [channel for channel, ct in is_ct.items() if not ct]
    if options.sources or len(other) < len(is_ct):
        _require_ct(other, options)
    in_hu = not (options.no_hu or other)
    if options.clip and not in_hu:
        raise ValueError(
            "--hu gives a range of Hounsfield units, but these scans are not CT: leave --hu out, "
            "or give CT"
        )
    return in_hu


def _require_ct(other: list[str], options: Options) -> None:
    if other and not options.no_hu:
        raise ValueError(
            f"{', '.join(other)} is not CT (dataset.json), but the other scans are: pretrain on "
            "one kind, or add --no-hu to normalise every scan by its own mean and std"
        )


def _channels_are_ct(options: Options, datasets: Sequence[Path]) -> dict[str, bool]:
    """ "channel 0 of Dataset001_Name" -> whether it is CT."""
    return {
        f"channel {number} of {folder.name}": is_ct_name(name)
        for folder in datasets
        for number, name in chosen_channels(folder, options.channels).items()
    }


def _require_datasets(options: Options, datasets: Sequence[Path]) -> None:
    if options.channels != (0,) and not datasets:
        raise ValueError(
            "--channels selects channels of the datasets of -d, but no -d was given; in a folder "
            "of -i every file is a separate scan: leave --channels out"
        )


def _labelled(options: Options, folder: Path, in_hu: bool) -> Labelled | None:
    """The probe's cases; of several preparing jobs only the first takes care of them.

    Raises ValueError where the scans are CT and the probe's are not.
    """
    if options.probe is None or options.part_id != 0:
        return None
    dataset = raw_dataset(options.probe, "--probe")
    labelled = find_labelled(dataset, options.probe_cases)
    if in_hu and _is_ct(options, folder):
        _require_ct_channel(options.probe, dataset)
    return labelled


def _is_ct(options: Options, folder: Path) -> bool:
    """Of a collection that is named alone, its plan knows."""
    plan = None if options.sources or options.dataset_ids else stored_plan(folder)
    return plan is None or plan.hu is not None


def _require_ct_channel(probe: str, dataset: Path) -> None:
    (channel,) = chosen_channels(dataset, (0,)).values()
    if not is_ct_name(channel):
        raise ValueError(
            f"--probe {probe}: channel 0 of {dataset.name} is {channel} (dataset.json), but the "
            "scans are CT. Give a dataset of CT, correct dataset.json, or add --no-hu to normalise "
            "every scan by its own mean and std"
        )
