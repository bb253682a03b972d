"""Patches from 16 to 320 voxels per side, thin and odd ones too: a step of training, and a sliding
window.
"""

from __future__ import annotations

import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_trainers import batch, synthetic_plans, synthetic_trainer

from nnssl import finetune
from nnssl.finetune import checkpoint_choice

pytestmark = pytest.mark.usefixtures("one_thread")
PATCHES = [
    (16, 16), (320, 16), (320, 320), (33, 47),
    (16, 16, 16), (16, 16, 320), (320, 16, 16), (16, 192, 24), (17, 19, 35),
]  # fmt: skip


@pytest.mark.parametrize("decoder", ["swinunetr", "light"])
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: "x".join(map(str, patch)))
def test_every_size_of_patch_trains_and_predicts(nnunet_env, monkeypatch, tmp_path, patch, decoder):
    dims = len(patch)
    config = type(ENCODER).from_dict(ENCODER.to_dict() | {"spatial_dims": dims})
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path, config)))
    monkeypatch.setattr(finetune.plans_file, "DECODER", decoder)
    name, plans = {2: "2d", 3: "3d_fullres"}[dims], synthetic_plans()
    plans["configurations"][name]["patch_size"] = list(patch)
    trainer = synthetic_trainer("SwinSSLTrainer", plans, name)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    sample = batch(trainer, size=1)
    assert sample["data"].shape[2:] == patch
    assert torch.isfinite(torch.as_tensor(trainer.train_step(sample)["loss"]))
    trainer.set_deep_supervision_enabled(False)
    image = (
        (9, *(n + 3 for n in patch)) if dims == 2 else (patch[0] - 5, *(n + 3 for n in patch[1:]))
    )
    assert window_by_window(trainer, image).shape == (3, *image)


def window_by_window(trainer, image: tuple[int, ...]) -> torch.Tensor:
    """The logits of an image [Z Y X] of noise, as nnU-Net's validation computes them."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1.0, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network.eval(),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    return predictor.predict_sliding_window_return_logits(torch.randn(1, *image))
