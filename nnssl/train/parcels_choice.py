"""Decide whether a run learns from parcels (`nnssl.data.parcel_maps`), and create them before it
starts.

`-m parcels` always does, and SMIT with `--set w_parcels=1`. SMIT without that setting
does so where parcels have been shown to help: CT volumes of up to a thousand scans that can
be registered to one another. The reason is printed in one line, as for the other choices of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from nnssl.data import parcel_maps
from nnssl.data.parcel_failures import NoParcelsError, ReadOnlyCollection
from nnssl.data.plan import Plan
from nnssl.methods import METHODS, MethodConfig
from nnssl.modules.masked import MaskedConfig
from nnssl.train.configure import FEW, Choice
from nnssl.train.earlier_run import EarlierRun
from nnssl.train.places import dimensions
from nnssl.types import PrintFn

if TYPE_CHECKING:
    from nnssl.train.pretrain_options import Options

WEIGHT = "w_parcels"
FEWEST = 10  # scans: an atlas of fewer shows the anatomy of single patients
REGISTERED = 0.8  # of the scans, at least: of several regions of the body most cannot be
WRITABLE = (
    "copy the folder to a disk on which you may write, below another nnUNet_preprocessed, and set "
    "that before you type the same command"
)
REMEDY = "choose another method (nnssl_pretrain --list), or a collection of one region of the body"


class _WithParcels(Protocol):
    """Settings of the methods that have `WEIGHT`."""

    classes: int


def choose(
    options: Options, plan: Plan, folder: Path, earlier: EarlierRun, print_fn: PrintFn
) -> tuple[Choice, ...]:
    """The run's weight of parcels with its reason, or () where it is not chosen here: where it was
    set, for other methods, and for a run that continues, which keeps what it had.

    Parcels that the run needs lie in `folder`, beside the preprocessed scans, afterwards. Raises
    ValueError where they were set and cannot be made.
    """
    kind = METHODS[options.method].Config
    config = kind.parse(options.settings)
    given = kind.read(options.settings)
    automatic = hasattr(config, WEIGHT) and WEIGHT not in given and not config.published
    if automatic and not earlier.method_config:
        return (_chosen(options, cast("_WithParcels", config), given, plan, folder, print_fn),)
    _make(options, plan, folder, earlier, print_fn)
    return ()


def _make(
    options: Options, plan: Plan, folder: Path, earlier: EarlierRun, print_fn: PrintFn
) -> None:
    """The parcels of a run that learns from them, for the scans that it is on."""
    if classes := _method_config(options, earlier).parcel_classes:
        try:
            parcel_maps.make(folder, plan, classes, options.num_processes, print_fn, earlier.cases)
        except NoParcelsError as error:
            raise ValueError(f"{error}: {_remedy_for(error, options)}") from error


def _remedy_for(error: NoParcelsError, options: Options) -> str:
    if not isinstance(error, ReadOnlyCollection):
        return REMEDY
    without = "" if options.method == "parcels" else ", or train without parcels: --set w_parcels=0"
    return f"{WRITABLE}{without}"


def parcel_case_ids(
    options: Options, plan: Plan, folder: Path, earlier: EarlierRun, from_scans: Sequence[Choice]
) -> list[str] | None:
    """The ids of the scans that have parcels, for a run that learns from them; None for others."""
    if not _method_config(options, earlier, from_scans).parcel_classes:
        return None
    return parcel_maps.cases_with_parcels(folder, plan)


def _method_config(
    options: Options, earlier: EarlierRun, from_scans: Sequence[Choice] = ()
) -> MethodConfig:
    kind = METHODS[options.method].Config
    if earlier.method_config:
        return kind.stored(earlier.method_config)
    return kind.parse(options.settings, {choice.name: choice.value for choice in from_scans})


def _chosen(
    options: Options,
    config: _WithParcels,
    given: dict,
    plan: Plan,
    folder: Path,
    print_fn: PrintFn,
) -> Choice:
    if reason := _unsuitable(given, dimensions(options), plan, folder, config.classes):
        return Choice(WEIGHT, 0.0, f"no parcels: {reason}")
    try:
        registered = parcel_maps.make(
            folder, plan, config.classes, options.num_processes, print_fn, least=REGISTERED
        )
    except NoParcelsError as error:
        return Choice(WEIGHT, 0.0, f"no parcels: {error}")
    reason = (
        f"{len(registered)} of {len(parcel_maps.preprocessed(folder, plan))} scans could be "
        "registered to one another; parcels of such scans have raised the Dice with few labels"
    )
    return Choice(WEIGHT, 1.0, reason)


def _unsuitable(given: dict, dims: int, plan: Plan, folder: Path, classes: int) -> str | None:
    """Why parcels would not be tried; None where they would."""
    if dims == 2:
        return "they are volumes, but this run trains on slices"
    if plan.hu is None:
        return "they are computed from HU, which these scans do not have"
    return _unsuitable_settings(given) or _unsuitable_number(plan, folder, classes)


def _unsuitable_settings(given: dict) -> str | None:
    decoder = given.get("decoder", MaskedConfig.decoder)
    if decoder != MaskedConfig.decoder:
        return f"decoder={decoder} pretrains a decoder already"
    if given.get("export") == "teacher":
        return "their decoder belongs to the student, but export=teacher is set"
    return None


def _unsuitable_number(plan: Plan, folder: Path, classes: int) -> str | None:
    scans = len(parcel_maps.preprocessed(folder, plan))
    if scans < FEWEST:
        return f"{scans} scans, too few for an atlas (at least {FEWEST})"
    if scans >= FEW and not parcel_maps.are_made(folder, plan, classes):
        return f"{scans} scans; parcels are used below {FEW}, where they have been shown to help"
    return None
