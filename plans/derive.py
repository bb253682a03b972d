"""`nnssl_plan`: a plans file that names our network, the checkpoint and the recipe.

Patch and batch are planned again for this network (`nnssl.plans.planner`), or taken from plans that
nnU-Net has made (`-p`). The preprocessed data are those of nnU-Net's own plans if both would
preprocess identically.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nnssl import files
from nnssl.data.raw_datasets import chosen_channels, is_ct_name
from nnssl.encoder.presets import preset
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO, PLANNED, architecture, are_plans, is_ct, is_ours
from nnssl.finetune.plans_file import resolve
from nnssl.plans.own_configurations import keep_own_configurations, separate_data
from nnssl.plans.plan_checks import check_request, target
from nnssl.plans.plans_request import DATASET, PRETRAINING, PlansRequest
from nnssl.recipe import RECIPE, Recipe
from nnssl.types import BASE, PREPROCESSED, RAW, Shape

if TYPE_CHECKING:
    from nnssl.plans.planner import PlannedStart

# entries of a configuration: nnU-Net's network, and what ours depends on
OF_A_NETWORK = {"architecture", "spacing", "patch_size", "normalization_schemes"}


class Derived(NamedTuple):
    path: Path  # of the plans file
    before: dict  # the plans of this name that it had held; empty where there were none


def derive(request: PlansRequest) -> Derived:
    """Write the plans file. Earlier plans of this name are overwritten, but for the configurations
    that a user has added to them. Raises ValueError and FileNotFoundError; their messages say what
    to type.
    """
    check_request(request)
    recipe = Recipe.chosen(request.recipe)
    folder = _dataset_folder(request.dataset)
    path = files.inside(folder, f"{request.name}.json")
    before = _earlier_plans(path)
    base = _base_plans(folder, request) if request.base else None
    start = _start(request, folder, base)
    request = replace(request, decoder=request.decoder or start.decoder)
    plans = base or _plans_from_planner(request, folder, start)
    _complete(plans, before, request, start, recipe)
    separate_data(plans, folder)
    files.write_json(path, plans)
    return Derived(path, before)


def _earlier_plans(path: Path) -> dict:
    """What `path` holds; empty where there is no file. Raises ValueError where the plans are not of
    `nnssl_plan`.
    """
    if not path.is_file():
        return {}
    plans = files.read_json(path)
    if not _has_ours(plans):
        raise ValueError(f"{path} exists and was not written by nnssl_plan; choose another --name")
    return plans


def _start(request: PlansRequest, folder: Path, base: dict | None) -> PlannedStart:
    """The preset's or the checkpoint's; of released weights that of the images' dimensions and
    modality.
    """
    from nnssl.plans.planner import PlannedStart

    if request.preset:
        return PlannedStart(preset(request.preset))
    if not _takes_released(request):
        return PlannedStart.of(request.checkpoint)
    dims = 2 if _are_slices(request, folder, base) else 3
    return PlannedStart.of(dims=dims, is_ct=_any_is_ct(folder, base))


def _takes_released(request: PlansRequest) -> bool:
    """Whether no checkpoint is named or found."""
    return not request.checkpoint and checkpoint_choice.choose({}, "nnssl_plan -c").default


def _are_slices(request: PlansRequest, folder: Path, base: dict | None) -> bool:
    """Whether nnU-Net plans 2D alone for these images."""
    if base:
        return all(_dims(base["configurations"], name) == 2 for name in base["configurations"])
    return all(shape[0] == 1 for shape in _fingerprint(request, folder)["shapes_after_crop"])


def _any_is_ct(folder: Path, base: dict | None) -> bool:
    """Whether any channel of these images is CT."""
    if base:
        return is_ct(base)
    names = chosen_channels(Path(os.environ[RAW], folder.name), None)
    return any(map(is_ct_name, names.values()))


def _fingerprint(request: PlansRequest, folder: Path) -> dict:
    """nnU-Net's, of the dataset; taken where it is missing."""
    _require_raw(request.dataset, folder.name)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    return DatasetFingerprintExtractor(folder.name).run(overwrite_existing=False)


def _complete(
    plans: dict, before: dict, request: PlansRequest, start: PlannedStart, recipe: Recipe
) -> None:
    """Write what is ours into `plans`, and what a user has added to those `before`."""
    plans["plans_name"] = request.name
    plans[RECIPE] = recipe.to_dict()
    if start.info:
        plans[INFO] = start.info
    _resize(plans, request)
    keep_own_configurations(plans, before)
    _name_network(plans, request.decoder or start.decoder, start)
    plans[PLANNED] = _how_planned(request, fitting(plans) if start.info else [])


def _name_network(plans: dict, decoder: str, start: PlannedStart) -> None:
    """Into each configuration that states something a network depends on. The others, such as the
    cascade's, inherit it.
    """
    for name, entry in plans["configurations"].items():
        if OF_A_NETWORK & entry.keys():
            resolved = resolve(plans, name)
            entry["architecture"] = architecture(plans, resolved, start.encoder, decoder, start.hu)


def _how_planned(request: PlansRequest, fits: list[str]) -> dict:
    """For the record: nothing depends on it."""
    return {
        "from": request.base or "the dataset's fingerprint",
        "gpu_memory_target_gb": None if request.base else target(request),
        "spacing": None if request.base else request.spacing,
        "checkpoint_fits": fits,
    }


def fitting(plans: dict) -> list[str]:
    """The configurations that the checkpoint fits: it is 2D or 3D, the plans are both."""
    configurations = plans["configurations"]
    wanted = len(plans[INFO]["pt_used_patchsize"])
    return [name for name in configurations if _dims(configurations, name) == wanted]


def _dims(configurations: dict, name: str) -> int:
    configuration = configurations[name]
    while "patch_size" not in configuration:
        configuration = configurations[configuration["inherits_from"]]
    return len(configuration["patch_size"])


def _dataset_folder(dataset: str | int) -> Path:
    if not os.environ.get(PREPROCESSED):
        raise ValueError(
            "folders not set: export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=..."
        )
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    dataset = int(dataset) if str(dataset).isdigit() else dataset
    return Path(os.environ[PREPROCESSED], maybe_convert_to_dataset_name(dataset))


def _base_plans(folder: Path, request: PlansRequest) -> dict:
    path = files.inside(folder, f"{request.base}.json")
    _require_plans(path, request.dataset)
    plans = files.read_json(path)
    if not are_plans(plans):
        raise ValueError(f"{path} holds no plans; derive new plans from nnU-Net's own: -p {BASE}")
    if _has_ours(plans):
        raise ValueError(
            f"{path} was written by nnssl_plan; derive new plans from nnU-Net's own: -p {BASE}"
        )
    return plans


def _require_plans(path: Path, dataset: str | int) -> None:
    if not path.is_file():
        found = sorted(other.stem for other in path.parent.glob("*lans*.json")) or "none"
        raise FileNotFoundError(
            f"plans {path} do not exist; found: {found}. Plan with nnU-Net first: "
            f"nnUNetv2_plan_and_preprocess -d {dataset}"
        )


def _require_raw(dataset: str | int, name: str) -> None:
    raw = Path(os.environ.get(RAW, f"${RAW}"), name)
    if not (raw / "dataset.json").is_file():
        raise FileNotFoundError(
            f"raw dataset {raw} does not exist, but planning needs it. Set {RAW}, or take patch "
            f"and batch size from existing nnU-Net plans: nnssl_plan -d {dataset} -p {BASE}"
        )


def _plans_from_planner(request: PlansRequest, folder: Path, start: PlannedStart) -> dict:
    """Plans by our planner, not written: what follows may refuse them."""
    _fingerprint(request, folder)  # raises where there is no dataset to take it of
    from nnssl.plans.planner import SwinPlanner

    spacing = _target_spacing(request, start)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints each plan as a dictionary
        return SwinPlanner(
            folder.name,
            target(request),
            plans_name=request.name,
            overwrite_target_spacing=spacing,
            start=start,
            decoder=request.decoder,
            patch=request.patch,
            writes=False,
        ).plan_experiment()


def _target_spacing(request: PlansRequest, start: PlannedStart) -> list[float] | None:
    """In mm; None: nnU-Net's choice for the dataset. Raises ValueError where it is not known."""
    if request.spacing == DATASET:
        return None
    spacing = _pretrained_spacing(start) if request.spacing == PRETRAINING else request.spacing
    return [float(mm) for mm in spacing]


def _pretrained_spacing(start: PlannedStart) -> Sequence[float]:
    if spacing := (start.info or {}).get("spacing"):
        return spacing
    raise ValueError(
        "the checkpoint does not record the spacing of its pretraining: give --spacing Z Y X in mm"
    )


def _resize(plans: dict, request: PlansRequest) -> None:
    """To the patch and batch of the request; what inherits keeps those that it states itself.
    Raises ValueError where no configuration has the patch's number of axes.
    """
    entries = plans["configurations"].values()
    planned = [entry for entry in entries if "inherits_from" not in entry]
    _require_axes(planned, request.patch)
    for entry in planned:
        if request.patch and len(request.patch) == len(entry["patch_size"]):
            entry["patch_size"] = list(request.patch)
        if request.batch_size:
            entry["batch_size"] = request.batch_size


def _require_axes(planned: list[dict], patch: Shape | None) -> None:
    known = {len(entry["patch_size"]) for entry in planned}
    if patch and len(patch) not in known:
        raise ValueError(
            f"--patch {' '.join(map(str, patch))} is for configurations of {len(patch)} axes, but "
            f"those of these plans have {', '.join(map(str, sorted(known)))}"
        )


def _has_ours(plans: object) -> bool:
    return are_plans(plans) and any(map(is_ours, plans["configurations"].values()))
