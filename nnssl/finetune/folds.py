"""Folds of one model are of one pretraining, one network and the same data, and all of them mirror
or none.
"""

from __future__ import annotations

import json
from pathlib import Path

from nnssl import files
from nnssl.encoder.config import SwinConfig, map_channels
from nnssl.finetune.architecture import INFO
from nnssl.finetune.checkpoint_choice import OriginError
from nnssl.finetune.plans_data import changed_settings, data_settings
from nnssl.finetune.plans_file import resolve
from nnssl.network.decoders import DECODERS, named, spelled_out
from nnssl.recipe import RECIPE, Recipe

LEFT_OUT = {"image_skip": "mapped", "axes": None}  # arguments of `SwinUNETR`, with its defaults


def refuse_mixed_folds(model: Path | str, fold: int | str, plans: dict, name: str) -> None:
    """Raises OriginError when other folds in this model's folder, complete or in training, came
    from another checkpoint, are of another network or other data, or mirror otherwise, than this
    run's configuration `name` of `plans`.

    All folds have one plans.json, which each training overwrites, and an ensemble of different
    pretrainings should be somebody's decision. nnU-Net predicts with the mirroring of the first
    fold alone.
    """
    path, others = Path(model, "plans.json"), _other_folds(Path(model), fold)
    if not others or not path.is_file():
        return
    if difference := _what_differs(files.read_json(path), plans, name):
        raise OriginError(
            f"{model} holds {', '.join(others)}, {difference}. Create separate plans for each: "
            "nnssl_plan -d DATASET -c CHECKPOINT --name NAME, and train with -p NAME; nnssl_plan "
            "-a PRESET makes plans without a checkpoint. If the earlier training is not wanted, "
            "remove its folder"
        )


def _other_folds(model: Path, fold: int | str) -> list[str]:
    """The folders of the folds but this one that were trained, or are being trained."""
    saved = {path.parent.name for path in model.glob("fold_*/checkpoint_*.pth")}
    return sorted(saved - {f"fold_{fold}"})


def _what_differs(before: dict, now: dict, name: str) -> str:
    """In words; empty where there is none. Patch, batch and all else of the recipe may differ."""
    theirs, ours = _pretrained_sha256(before), _pretrained_sha256(now)
    if theirs != ours:
        return f"trained from {_by_hash(theirs)}, but this run has {_by_hash(ours)}"
    mirrored, mirrors = _mirrors(before), _mirrors(now)
    if mirrored != mirrors:
        return f"trained {_by_mirroring(mirrored)}, but this run is {_by_mirroring(mirrors)}"
    changed = changed_settings(_made_of(before, name), _made_of(now, name))
    return f"of another network or other data than this run: {', '.join(changed)}" * bool(changed)


def _pretrained_sha256(plans: dict) -> str | None:
    return plans.get(INFO, {}).get("sha256")


def _by_hash(sha256: str | None) -> str:
    return f"the checkpoint with sha256 {sha256}" if sha256 else "plans without a checkpoint"


def _mirrors(plans: dict) -> bool:
    """Not by `Recipe.of`, which refuses the recipe of a later version."""
    return plans.get(RECIPE, {}).get("mirror", Recipe.mirror)


def _by_mirroring(mirrors: bool) -> str:
    return "with mirroring" if mirrors else "without mirroring (--no-mirror)"


def _made_of(plans: dict, name: str) -> dict:
    """Network and data of a configuration, as JSON has them."""
    resolved = resolve(plans, name)
    network = {"architecture": _spelled_out(resolved["architecture"])}
    return json.loads(json.dumps(network | data_settings(plans, resolved)))


def _spelled_out(architecture: dict) -> dict:
    """With what older plans leave out, as the network takes it."""
    arguments = LEFT_OUT | architecture.get("arch_kwargs", {})
    if encoder := arguments.get("encoder"):
        arguments["encoder"] = SwinConfig().to_dict() | encoder
    if decoder := arguments.get("decoder"):
        arguments["decoder"] = _default_widths(decoder, encoder) | spelled_out(decoder)
    return architecture | {"arch_kwargs": arguments}


def _default_widths(decoder: str | dict, encoder: dict | None) -> dict:
    """Those that a decoder has on this encoder where the plans name none."""
    if not encoder:
        return {}
    kind = DECODERS[named(decoder)["name"]]
    return {"widths": kind.default_widths(map_channels(encoder["embed_dim"]))}
