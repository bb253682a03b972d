"""`nnssl_plan`: a plans file that names our network, the checkpoint and the recipe, and shares the preprocessed data.

It is derived from plans that nnU-Net has made (`nnUNetv2_plan_and_preprocess`): spacing, normalisation, patch and
batch size stay, and so does each configuration's `data_identifier`, so that nothing is preprocessed again.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from nnssl import checkpoint, files
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import SwinConfig
from nnssl.network import origin
from nnssl.network.decoders import DECODERS
from nnssl.network.planned import INFO, RECIPE, Recipe, architecture, is_ours
from nnssl.types import HUPolicy, Shape

NAME, BASE = "nnsslPlans", "nnUNetPlans"
PREPROCESSED = "nnUNet_preprocessed"


@dataclass(frozen=True)
class Request:
    """What `nnssl_plan` was asked for."""

    dataset: str | int  # 501 or Dataset501_Name
    name: str = NAME  # of the new plans: nnUNetv2_train ... -p NAME
    base: str = BASE  # plans made by nnU-Net
    checkpoint: Path | None = None  # None: the variable nnssl_checkpoint, or the only one there is
    preset: str | None = None  # in the place of a checkpoint, for SwinScratchTrainer
    decoder: str = "swinunetr"
    patch: Shape | None = None  # voxels; for the configurations of as many axes
    batch_size: int | None = None
    recipe: dict = field(default_factory=dict)  # fields of `Recipe`; None counts as left out


def derive(request: Request) -> Path:
    """Write the plans file and give its path.

    Raises ValueError (NoCheckpointError, CheckpointError) and FileNotFoundError, each saying what to type.
    """
    _check(request)
    folder = _dataset_folder(request.dataset)
    plans = _base_plans(folder, request)
    encoder, hu = _encoder(request, plans)
    plans["plans_name"] = request.name
    plans[RECIPE] = Recipe(**_numbers(request.recipe)).to_dict()
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:  # else inherited, as the cascade's
            _resize(configuration, request)
            configuration["architecture"] = architecture(plans, configuration, encoder, request.decoder, hu)
    path = files.inside(folder, f"{request.name}.json")
    _refuse_to_overwrite(path)
    files.write_json(path, plans)
    return path


def describe(path: Path, request: Request) -> str:
    """What was written, and the lines to type next."""
    plans = files.read_json(path)
    info = plans.get(INFO)
    start = f"checkpoint {info['checkpoint_path']} (sha256 {info['sha256'][:12]})" if info else "no checkpoint"
    trainer = "SwinSSLTrainer" if info else "SwinScratchTrainer"
    recipe = ", ".join(f"{key} {value}" for key, value in plans[RECIPE].items() if value is not None)
    lines = [f"{path}\n  {start}\n  decoder {request.decoder}; {recipe}"]
    for name, configuration in plans["configurations"].items():
        if "architecture" in configuration:
            lines.append(f"  {name}: patch {configuration['patch_size']}, batch {configuration['batch_size']}")
    lines.append(f"Train with: nnUNetv2_train {request.dataset} {_example(plans)} 0 -tr {trainer} -p {request.name}")
    return "\n".join(lines)


def _example(plans: dict) -> str:
    """A configuration that the checkpoint fits: it is 2D or 3D, the plans are both."""
    dims = {name: len(c["patch_size"]) for name, c in plans["configurations"].items() if "patch_size" in c}
    wanted = len(plans.get(INFO, {}).get("pt_used_patchsize", (1, 1, 1)))
    fitting = [name for name in ("3d_fullres", "2d", *dims) if dims.get(name) == wanted]
    return (fitting or list(dims))[0]


def _check(request: Request) -> None:
    if request.decoder not in DECODERS:
        raise ValueError(f"unknown decoder {request.decoder!r}; known: {', '.join(DECODERS)}")
    if request.preset and request.checkpoint:
        raise ValueError("a checkpoint says which encoder it holds: give -c or -a, not both")
    if "__" in request.name or not request.name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"plans are named by letters, digits, - and single _, got {request.name!r}: nnU-Net joins trainer, plans "
            "and configuration by __ into a folder's name"
        )
    if request.name == request.base:
        raise ValueError(f"--name {request.name} would overwrite the plans it is derived from; choose another")


def _dataset_folder(dataset: str | int) -> Path:
    if not os.environ.get(PREPROCESSED):
        raise ValueError("folders not set: export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...")
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
        raise ValueError(f"{path} was made by nnssl_plan; derive new plans from nnU-Net's own: -p {BASE}")
    return plans


def _encoder(request: Request, plans: dict) -> tuple[SwinConfig, HUPolicy | None]:
    """Encoder and intensities of the checkpoint, which is written into `plans`; or of the preset asked for."""
    if request.preset:
        return preset(request.preset), None
    named = {"checkpoint_path": str(request.checkpoint)} if request.checkpoint else {}
    choice = origin.demand(origin.choose(named, "nnssl_plan -c"))
    loaded = checkpoint.load(choice.path)
    plans[INFO] = origin.pretrain_info(choice, loaded)
    return loaded.encoder_config, loaded.hu


def _numbers(asked: dict) -> dict:
    """With a fifth of the iterations for validation, as nnU-Net's 50 of 250, where it is not said."""
    given = {name: value for name, value in asked.items() if value is not None}
    if "iterations" in given:
        given.setdefault("val_iterations", max(1, given["iterations"] // 5))
    return given


def _resize(configuration: dict, request: Request) -> None:
    if request.patch and len(request.patch) == len(configuration["patch_size"]):
        configuration["patch_size"] = list(request.patch)
    if request.batch_size:
        configuration["batch_size"] = request.batch_size


def _refuse_to_overwrite(path: Path) -> None:
    if path.is_file() and not any(is_ours(c) for c in files.read_json(path)["configurations"].values()):
        raise ValueError(f"{path} exists and was not made by nnssl_plan; choose another --name")
