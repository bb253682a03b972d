"""`nnssl_plan`: a plans file that names our network, the checkpoint and the recipe.

Patch and batch are planned again for this network (`nnssl.plans.planner`), or taken from plans that
nnU-Net has made (`-p`). Preprocessed data are shared with nnU-Net's own plans wherever both would
preprocess the same.
"""

from __future__ import annotations

import contextlib
import io
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import files, weights
from nnssl.encoder.presets import preset
from nnssl.finetune.architecture import (
    BASE,
    INFO,
    PLANNED,
    RECIPE,
    Recipe,
    architecture,
    is_ct,
    is_ours,
)
from nnssl.network.decoders import full_options
from nnssl.plans.cautions import cautions, fold_to_train
from nnssl.plans.request import DATASET, MEMORY, PRETRAINING, Request
from nnssl.types import PREPROCESSED, RAW

if TYPE_CHECKING:
    from nnssl.plans.planner import Start


def derive(request: Request) -> Path:
    """Write the plans file and give its path.

    Raises ValueError and FileNotFoundError, each saying what to type.
    """
    from nnssl.plans.planner import Start

    _check(request)
    recipe = Recipe.chosen(request.recipe)
    folder = _dataset_folder(request.dataset)
    path = files.inside(folder, f"{request.name}.json")
    base = _base_plans(folder, request) if request.base else None
    start = Start(preset(request.preset)) if request.preset else Start.of(request.checkpoint)
    decoder = request.decoder or start.decoder
    request = replace(request, decoder=decoder)
    _refuse_to_overwrite(path)
    plans = base or _planned(request, folder, start)
    plans["plans_name"] = request.name
    plans[RECIPE] = recipe.to_dict()
    if start.info:
        plans[INFO] = start.info
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:  # else inherited, as the cascade's
            _resize(configuration, request)
            configuration["architecture"] = architecture(
                plans, configuration, start.encoder, decoder, start.hu
            )
    plans[PLANNED] = {
        "from": request.base or "the dataset's fingerprint",
        "gpu_memory_target_gb": None if request.base else _target(request),
        "spacing": None if request.base else request.spacing,
        "checkpoint_fits": fitting(plans) if start.info else [],
    }
    files.write_json(path, plans)
    return path


def fitting(plans: dict) -> list[str]:
    """The configurations that the checkpoint fits: it is 2D or 3D, the plans are both."""
    configurations = plans["configurations"]
    wanted = len(plans[INFO]["pt_used_patchsize"])

    def dims(configuration: dict) -> int:
        while "patch_size" not in configuration:
            configuration = configurations[configuration["inherits_from"]]
        return len(configuration["patch_size"])

    return [name for name, configuration in configurations.items() if dims(configuration) == wanted]


def describe(path: Path, request: Request) -> str:
    """What was written, and the lines to type next."""
    plans = files.read_json(path)
    info = plans.get(INFO)
    start = ["  no checkpoint"]
    if info:
        start = [f"  checkpoint {info['checkpoint_path']} (sha256 {info['sha256'][:12]})"]
        start += weights.about(info["sha256"], is_ct(plans))
    fits = plans[PLANNED]["checkpoint_fits"] if info else list(plans["configurations"])
    trainer = "SwinSSLTrainer" if info and fits else "SwinScratchTrainer"
    recipe = ", ".join(
        f"{key} {value}" for key, value in plans[RECIPE].items() if value is not None
    )
    lines = [str(path), *start, f"  decoder {_decoder_of(plans)}; {recipe}"]
    missing = []
    for name, configuration in plans["configurations"].items():
        if "architecture" not in configuration:
            continue
        data = path.parent / configuration["data_identifier"]
        missing += [] if data.is_dir() else [name]
        lines.append(
            f"  {name}: patch {_by(configuration['patch_size'])}, batch "
            f"{configuration['batch_size']}, spacing {_by(configuration['spacing'])}, data "
            f"{data.name}{_strides(configuration)}"
            + ("" if name in fits else " (the checkpoint does not fit: SwinScratchTrainer only)")
        )
    if missing:
        which = f"-plans_name {request.name} -c {' '.join(missing)}"
        lines.append(f"Preprocess: nnUNetv2_preprocess -d {request.dataset} {which}")
    first = next(
        name for name in ("3d_fullres", *fits, *plans["configurations"]) if name in fits or not fits
    )
    lines += [
        f"WARNING: {caution.says}:\n  {caution.remedy}" for caution in cautions(path.parent, plans)
    ]
    fold = fold_to_train(path.parent)
    lines.append(
        f"Train with: nnUNetv2_train {request.dataset} {first} {fold} -tr {trainer} -p "
        f"{request.name}"
    )
    return "\n".join(lines)


def _decoder_of(plans: dict) -> str:
    """The decoder of the configurations, and whether its weights are pretrained."""
    options = next(
        c["architecture"]["arch_kwargs"]["decoder"]
        for c in plans["configurations"].values()
        if is_ours(c)
    )
    pretrained = plans.get(INFO, {}).get("decoder") == options
    return options["name"] + (" (pretrained)" if pretrained else "")


def _strides(configuration: dict) -> str:
    steps = configuration["architecture"]["arch_kwargs"]["encoder"]["steps"]
    return (
        f", steps {' '.join('x'.join(map(str, step)) for step in steps)} (as read)" if steps else ""
    )


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _check(request: Request) -> None:
    if request.decoder:
        full_options(request.decoder)
    if request.preset and request.checkpoint:
        raise ValueError("a checkpoint says which encoder it holds: give -c or -a, not both")
    if "__" in request.name or not request.name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"plans are named by letters, digits, - and single _, got {request.name!r}: nnU-Net "
            "joins trainer, plans and configuration by __ into a folder's name"
        )
    if request.name in (request.base, BASE):
        raise ValueError(
            f"--name {request.name} would overwrite the plans that nnU-Net has made; choose another"
        )
    if request.base and (request.gpu_memory_target or request.spacing != DATASET):
        raise ValueError(
            f"-p {request.base} takes patch, batch size and spacing from these plans; leave out -p "
            "to plan them by -gpu_memory_target and --spacing"
        )
    if not _target(request) > 0:
        raise ValueError(
            f"-gpu_memory_target is in GB and positive, got {request.gpu_memory_target:g}"
        )
    _check_spacing(request)


def _check_spacing(request: Request) -> None:
    spacing = request.spacing
    if isinstance(spacing, str):
        if spacing not in (DATASET, PRETRAINING):
            raise ValueError(
                f"--spacing is {DATASET}, {PRETRAINING}, or three numbers Z Y X in mm; got "
                f"{spacing!r}"
            )
        if spacing == PRETRAINING and request.preset:
            raise ValueError(
                f"--spacing {PRETRAINING} is that of a checkpoint; -a names a preset that has none"
            )
    elif len(spacing) != 3 or not all(mm > 0 for mm in spacing):
        raise ValueError(f"--spacing takes three positive numbers Z Y X in mm, got {spacing}")


def _target(request: Request) -> float:
    return float(MEMORY) if request.gpu_memory_target is None else request.gpu_memory_target


def _dataset_folder(dataset: str | int) -> Path:
    if not os.environ.get(PREPROCESSED):
        raise ValueError(
            "folders not set: export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=..."
        )
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    dataset = int(dataset) if str(dataset).isdigit() else dataset
    return Path(os.environ[PREPROCESSED], maybe_convert_to_dataset_name(dataset))


def _base_plans(folder: Path, request: Request) -> dict:
    path = files.inside(folder, f"{request.base}.json")
    if not path.is_file():
        found = sorted(other.stem for other in folder.glob("*lans*.json")) or "none"
        raise FileNotFoundError(
            f"no plans at {path}; found: {found}. Let nnU-Net plan first: "
            f"nnUNetv2_plan_and_preprocess -d {request.dataset}"
        )
    plans = deepcopy(files.read_json(path))
    if any(is_ours(configuration) for configuration in plans["configurations"].values()):
        raise ValueError(
            f"{path} was made by nnssl_plan; derive new plans from nnU-Net's own: -p {BASE}"
        )
    return plans


def _planned(request: Request, folder: Path, start: Start) -> dict:
    """Plans by our planner, which are not written yet; the dataset's fingerprint is taken first
    where it is missing.
    """
    raw = Path(os.environ.get(RAW, f"${RAW}"), folder.name)
    if not (raw / "dataset.json").is_file():
        raise FileNotFoundError(
            f"no raw dataset at {raw}, which planning needs. Set {RAW}, or take patch and batch "
            f"size from plans that nnU-Net has made: nnssl_plan -d {request.dataset} -p {BASE}"
        )
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    from nnssl.plans.planner import SwinPlanner

    DatasetFingerprintExtractor(folder.name).run(overwrite_existing=False)
    pretraining = (start.info or {}).get("spacing")
    if request.spacing == PRETRAINING and not pretraining:
        raise ValueError(
            "the checkpoint does not say what spacing it was pretrained at: give --spacing Z Y X "
            "in mm"
        )
    named = {DATASET: None, PRETRAINING: pretraining}
    chosen = named[request.spacing] if isinstance(request.spacing, str) else request.spacing
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints each plan as a dictionary
        return SwinPlanner(
            folder.name,
            _target(request),
            plans_name=request.name,
            overwrite_target_spacing=chosen and [float(mm) for mm in chosen],
            start=start,
            decoder=request.decoder,
            patch=request.patch,
        ).plan_experiment()


def _resize(configuration: dict, request: Request) -> None:
    if request.patch and len(request.patch) == len(configuration["patch_size"]):
        configuration["patch_size"] = list(request.patch)
    if request.batch_size:
        configuration["batch_size"] = request.batch_size


def _refuse_to_overwrite(path: Path) -> None:
    if path.is_file() and not any(
        is_ours(c) for c in files.read_json(path)["configurations"].values()
    ):
        raise ValueError(f"{path} exists and was not made by nnssl_plan; choose another --name")
