"""nnU-Net trainers of ours on a dataset of which only the plans exist: one that is preprocessed by
name alone.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import torch
from synthetic_plans import DATASET, nnunet_plans

from nnssl import files, finetune
from nnssl.plans.derive import PREPROCESSED
from nnssl.recipe import RECIPE

MODULES = (
    "nnssl_default_network",
    "nnssl_default_primus",
    "nnssl_swin_frozen",
    "nnssl_swin_gradual",
    "nnssl_swin_lora",
    "nnssl_swin_scratch",
    "nnssl_swin_ssl",
)
PATCH = (16, 16, 16)
DATASET_JSON = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1, "tumour": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def trainer_class(name: str) -> type:
    modules = [import_module(f"nnssl.trainers.{module}") for module in MODULES]
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def synthetic_plans(
    recipe: dict | None = None, schemes: tuple[str, ...] = ("CTNormalization",)
) -> dict:
    """Plans of nnU-Net's own with small patches, for `synthetic_trainer`."""
    plans = nnunet_plans(schemes) | {"label_manager": "LabelManager", RECIPE: recipe or {}}
    for name in ("3d_fullres", "2d"):
        patch = plans["configurations"][name]["patch_size"]
        plans["configurations"][name] |= {
            "patch_size": list(PATCH[: len(patch)]),
            "batch_dice": False,
        }
    return plans


def synthetic_trainer(
    name: str,
    plans: dict,
    configuration: str = "3d_fullres",
    dataset_json: dict | None = None,
    continues: bool = False,
):
    """As `nnUNetv2_train` makes it, not yet initialised. $nnUNet_preprocessed and $nnUNet_results
    are set. continues: with --c.
    """
    dataset_json = dataset_json or DATASET_JSON
    folder = Path(os.environ[PREPROCESSED], DATASET)
    case = folder / finetune.resolve(plans, configuration)["data_identifier"] / "case.b2nd"
    case.parent.mkdir(parents=True, exist_ok=True)
    case.touch()
    files.write_json(folder / "dataset.json", dataset_json)
    plans["continue_training"] = continues
    return trainer_class(name)(plans, configuration, 0, dataset_json, torch.device("cpu"))


def batch(trainer, seed: int = 0, size: int = 2) -> dict:
    """What the trainer's loader would give: images of its patch size, and labels of each output's
    size.
    """
    patch = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(seed)
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch)]
    sizes = [[round(n * s) for n, s in zip(patch, scale, strict=True)] for scale in scales]
    targets = [torch.randint(0, 3, (size, 1, *n), generator=generator).float() for n in sizes]
    image = torch.randn(size, trainer.num_input_channels, *patch, generator=generator)
    return {"data": image, "target": targets if trainer.enable_deep_supervision else targets[0]}


def train_epoch(trainer, epoch: int, steps: int = 2) -> None:
    """`steps` steps of an epoch, the same whenever it is called."""
    trainer.current_epoch = epoch
    torch.manual_seed(epoch)
    trainer.on_train_epoch_start()
    for step in range(steps):
        trainer.train_step(batch(trainer, seed=10 * epoch + step))
