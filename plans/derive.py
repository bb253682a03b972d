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
from typing import TYPE_CHECKING

from nnssl import files, weights
from nnssl.encoder.presets import preset
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import (
    BASE,
    INFO,
    PLANNED,
    RECIPE,
    architecture,
    is_ct,
    is_ours,
)
from nnssl.plans.cautions import cautions, fold_to_train
from nnssl.plans.plan_checks import check_request, target
from nnssl.plans.plans_request import DATASET, PRETRAINING, PlansRequest
from nnssl.recipe import Recipe
from nnssl.types import PREPROCESSED, RAW

if TYPE_CHECKING:
    from nnssl.plans.planner import PlannedStart


def derive(request: PlansRequest) -> Path:
    """Write the plans file and return its path. Raises ValueError and FileNotFoundError, whose
    messages say what to type.
    """
    check_request(request)
    recipe = Recipe.chosen(request.recipe)
    folder = _dataset_folder(request.dataset)
    path = files.inside(folder, f"{request.name}.json")
    base = _base_plans(folder, request) if request.base else None
    _refuse_to_overwrite(path)
    start = _start(request, folder, base)
    request = replace(request, decoder=request.decoder or start.decoder)
    plans = base or _plans_from_planner(request, folder, start)
    _complete(plans, request, start, recipe)
    files.write_json(path, plans)
    return path


def _start(request: PlansRequest, folder: Path, base: dict | None) -> PlannedStart:
    """The preset's or the checkpoint's; of released weights that of the images' dimensions."""
    from nnssl.plans.planner import PlannedStart

    if request.preset:
        return PlannedStart(preset(request.preset))
    flat = _takes_released(request) and _are_slices(request, folder, base)
    return PlannedStart.of(request.checkpoint, 2 if flat else 3)


def _takes_released(request: PlansRequest) -> bool:
    """Whether no checkpoint is named or found."""
    return not request.checkpoint and checkpoint_choice.choose({}, "nnssl_plan -c").default


def _are_slices(request: PlansRequest, folder: Path, base: dict | None) -> bool:
    """Whether nnU-Net plans 2D alone for these images."""
    if base:
        return all(_dims(base["configurations"], name) == 2 for name in base["configurations"])
    return all(shape[0] == 1 for shape in _fingerprint(request, folder)["shapes_after_crop"])


def _fingerprint(request: PlansRequest, folder: Path) -> dict:
    """nnU-Net's, of the dataset; taken where it is missing."""
    _require_raw(request.dataset, folder.name)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    return DatasetFingerprintExtractor(folder.name).run(overwrite_existing=False)


def _complete(plans: dict, request: PlansRequest, start: PlannedStart, recipe: Recipe) -> None:
    """Write what is ours into `plans`."""
    plans["plans_name"] = request.name
    plans[RECIPE] = recipe.to_dict()
    if start.info:
        plans[INFO] = start.info
    _name_network(plans, request, start)
    plans[PLANNED] = _how_planned(request, fitting(plans) if start.info else [])


def _name_network(plans: dict, request: PlansRequest, start: PlannedStart) -> None:
    """Into each configuration; but for those that inherit it, as the cascade's."""
    decoder = request.decoder or start.decoder
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            _resize(configuration, request)
            entry = architecture(plans, configuration, start.encoder, decoder, start.hu)
            configuration["architecture"] = entry


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


def describe_plans(path: Path, request: PlansRequest) -> str:
    """What was written, and the commands to type next."""
    plans, folder = files.read_json(path), path.parent
    fits = plans[PLANNED]["checkpoint_fits"] if INFO in plans else list(plans["configurations"])
    named = {name: c for name, c in plans["configurations"].items() if "architecture" in c}
    lines = [
        str(path),
        *_about_checkpoint(plans),
        f"  decoder {_decoder_of(plans)}; {_recipe_of(plans)}",
        *(_about_configuration(name, own, name in fits) for name, own in named.items()),
        *_preprocessing_lines(named, folder, request),
        *_warnings(folder, plans),
        _training_line(plans, fits, folder, request),
    ]
    return "\n".join(lines)


def _warnings(folder: Path, plans: dict) -> list[str]:
    found = cautions(folder, plans)
    return [f"WARNING: {caution.says}:\n  {caution.remedy}" for caution in found]


def _preprocessing_lines(configurations: dict, folder: Path, request: PlansRequest) -> list[str]:
    """None where the data of all are there."""
    missing = _unpreprocessed(configurations, folder)
    if not missing:
        return []
    which = f"-plans_name {request.name} -c {' '.join(missing)}"
    return [f"Preprocess: nnUNetv2_preprocess -d {request.dataset} {which}"]


def _unpreprocessed(configurations: dict, folder: Path) -> list[str]:
    data = {name: folder / entry["data_identifier"] for name, entry in configurations.items()}
    return [name for name, path in data.items() if not path.is_dir()]


def _about_checkpoint(plans: dict) -> list[str]:
    info = plans.get(INFO)
    if not info:
        return ["  no checkpoint"]
    about = weights.about(info["sha256"], is_ct(plans))
    return [f"  checkpoint {info['checkpoint_path']} (sha256 {info['sha256'][:12]})", *about]


def _recipe_of(plans: dict) -> str:
    numbers = plans[RECIPE].items()
    return ", ".join(f"{key} {value}" for key, value in numbers if value is not None)


def _about_configuration(name: str, configuration: dict, fits: bool) -> str:
    line = (
        f"  {name}: patch {_by(configuration['patch_size'])}, batch "
        f"{configuration['batch_size']}, spacing {_by(configuration['spacing'])}, data "
        f"{configuration['data_identifier']}{_strides(configuration)}"
    )
    return line if fits else f"{line} (the checkpoint does not fit: SwinScratchTrainer only)"


def _training_line(plans: dict, fits: list[str], folder: Path, request: PlansRequest) -> str:
    """For the first configuration that the checkpoint fits; where it fits none, the first."""
    known = plans["configurations"]
    names = [name for name in ("3d_fullres", *fits, *known) if name in known]
    first = next(name for name in names if name in fits or not fits)
    trainer = "SwinSSLTrainer" if plans.get(INFO) and fits else "SwinScratchTrainer"
    return (
        f"Train with: nnUNetv2_train {request.dataset} {first} {fold_to_train(folder)} "
        f"-tr {trainer} -p {request.name}"
    )


def _decoder_of(plans: dict) -> str:
    """The decoder of the configurations, and whether its weights are pretrained."""
    ours = next(entry for entry in plans["configurations"].values() if is_ours(entry))
    options = ours["architecture"]["arch_kwargs"]["decoder"]
    pretrained = plans.get(INFO, {}).get("decoder") == options
    return options["name"] + (" (pretrained)" if pretrained else "")


def _strides(configuration: dict) -> str:
    steps = configuration["architecture"]["arch_kwargs"]["encoder"]["steps"]
    by_step = " ".join("x".join(map(str, step)) for step in steps)
    return f", steps {by_step} (as read)" if steps else ""


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


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
    """Plans by our planner, which are not written yet."""
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


def _resize(configuration: dict, request: PlansRequest) -> None:
    if request.patch and len(request.patch) == len(configuration["patch_size"]):
        configuration["patch_size"] = list(request.patch)
    if request.batch_size:
        configuration["batch_size"] = request.batch_size


def _refuse_to_overwrite(path: Path) -> None:
    if path.is_file() and not _has_ours(files.read_json(path)):
        raise ValueError(f"{path} exists and was not written by nnssl_plan; choose another --name")


def _has_ours(plans: dict) -> bool:
    return any(is_ours(configuration) for configuration in plans["configurations"].values())
