"""`python -m nnssl.study.execution.supervised FOLD CHECKPOINT`: the encoder of a supervised nnU-Net
training as a checkpoint.

What such an encoder saw is what nnU-Net's normalisation gave it; for CT that is an HU policy of its
own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nnssl import __version__, checkpoint, files
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.finetune import resolve
from nnssl.finetune.architecture import as_read, intensities_of
from nnssl.hu import HUPolicy
from nnssl.recipe import RECIPE
from nnssl.types import FINAL


def export_encoder(fold: Path, path: Path) -> None:
    """Write the encoder of `fold`, a finished training by SwinScratchTrainer. Raises
    FileNotFoundError, ValueError.
    """
    saved = torch.load(fold / FINAL, map_location="cpu", weights_only=False)  # nnU-Net's own
    plans, name = saved["init_args"]["plans"], saved["init_args"]["configuration"]
    resolved = resolve(plans, name)
    arguments, weights = resolved["architecture"]["arch_kwargs"], saved["network_weights"]
    _require_usable(fold, arguments, weights)
    header = _checkpoint_header(plans, resolved, name, len(saved["logging"]["lrs"]))
    checkpoint.write(path, checkpoint.pack(_trained_encoder(arguments, weights), header, []))


def _require_usable(fold: Path, arguments: dict, weights: dict[str, Tensor]) -> None:
    channels = weights["encoder.patch_embed.proj.weight"].shape[1]
    if channels != 1:
        raise ValueError(
            f"{fold} was trained on {channels} channels; only a one-channel encoder can be "
            "transferred"
        )
    if arguments.get("intensity"):
        raise ValueError(
            f"{fold} was trained on intensities mapped to another pretraining's; create its plans "
            "without a checkpoint"
        )


def _trained_encoder(arguments: dict, weights: dict[str, Tensor]) -> Swin:
    """Out of the network's weights."""
    encoder = Swin(SwinConfig.from_dict(arguments["encoder"]))
    encoder.load_state_dict(_encoder_weights(weights))
    return encoder


def _encoder_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix("encoder."): value
        for key, value in weights.items()
        if key.startswith("encoder.") and not key.startswith("encoder.intensity.")
    }


def _collection_header(plans: dict, resolved: dict, axes: Sequence[int]) -> dict:
    """The encoder's training data, as a checkpoint's header describes a collection."""
    properties = intensities_of(plans)["0"]
    hu = policy(resolved["normalization_schemes"][0], properties)
    return {
        "name": plans["dataset_name"],
        "cases": "all",
        "fingerprint": files.fingerprint(plans),
        "spacing": as_read(resolved["spacing"], axes),
        "hu": hu and hu.to_dict(),
    }


def _checkpoint_header(plans: dict, resolved: dict, name: str, epochs: int) -> dict:
    axes = resolved["architecture"]["arch_kwargs"].get("axes") or range(len(resolved["spacing"]))
    return {
        "method": "supervised",
        "supervised": True,
        "preset": name,
        "crop": as_read(resolved["patch_size"], axes),
        "plan": _collection_header(plans, resolved, axes),
        "step": epochs,
        "run": {"steps": epochs, "batch_size": resolved["batch_size"], "seed": None},
        "method_config": plans.get(RECIPE, {}),
        "metrics": {},
        "versions": {"nnssl": __version__},
        "created": "by nnUNetv2_train",
    }


def policy(scheme: str, properties: dict) -> HUPolicy | None:
    """What CTNormalization did with HU; None for other schemes: all images then pass as nnU-Net
    normalises them.
    """
    if scheme != "CTNormalization":
        return None
    return HUPolicy(
        low=properties["percentile_00_5"],
        high=properties["percentile_99_5"],
        mean=properties["mean"],
        std=max(properties["std"], 1e-8),
    )


if __name__ == "__main__":
    export_encoder(Path(sys.argv[1]), Path(sys.argv[2]))
