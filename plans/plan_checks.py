"""Refuse contradictory arguments of `nnssl_plan`, before anything is read or written."""

from __future__ import annotations

from nnssl import options
from nnssl.network.decoders import full_options
from nnssl.plans.plans_request import DATASET, MEMORY, PRETRAINING, PlansRequest
from nnssl.types import BASE


def check_request(request: PlansRequest) -> None:
    """Raises ValueError, whose message says what to type."""
    if request.decoder:
        full_options(request.decoder)
    if request.preset and request.checkpoint:
        raise ValueError("a checkpoint defines its encoder: give -c or -a, not both")
    _check_name(request)
    _check_base(request)
    if not target(request) > 0:
        raise ValueError(
            f"-gpu_memory_target must be positive, in GB, got {request.gpu_memory_target:g}"
        )
    _check_target_spacing(request)
    options.require(request)


def _check_base(request: PlansRequest) -> None:
    if request.base and (request.gpu_memory_target or request.spacing != DATASET):
        raise ValueError(
            f"-p {request.base} takes patch, batch size and spacing from these plans; leave out -p "
            "to plan them by -gpu_memory_target and --spacing"
        )


def _check_name(request: PlansRequest) -> None:
    name = request.name
    if "__" in name or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"plans names consist of letters, digits, - and single _, got {name!r}: nnU-Net joins "
            "trainer, plans and configuration by __ into a folder's name"
        )
    if name in (request.base, BASE):
        raise ValueError(f"--name {name} would overwrite nnU-Net's own plans; choose another")


def _check_target_spacing(request: PlansRequest) -> None:
    spacing = request.spacing
    if isinstance(spacing, str):
        _check_spacing_source(spacing, request.preset)
    elif len(spacing) != 3 or not all(mm > 0 for mm in spacing):
        raise ValueError(f"--spacing takes three positive numbers Z Y X in mm, got {spacing}")


def _check_spacing_source(source: str, preset: str | None) -> None:
    if source not in (DATASET, PRETRAINING):
        raise ValueError(
            f"--spacing must be {DATASET}, {PRETRAINING}, or three numbers Z Y X in mm; got "
            f"{source!r}"
        )
    if source == PRETRAINING and preset:
        raise ValueError(
            f"--spacing {PRETRAINING} needs a checkpoint (-c); the preset of -a has no spacing"
        )


def target(request: PlansRequest) -> float:
    """The GPU memory that a training may take, in GB."""
    return float(MEMORY) if request.gpu_memory_target is None else request.gpu_memory_target
