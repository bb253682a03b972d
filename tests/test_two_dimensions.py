"""`--dims 2`: axial slices through every method, and the encoder in a 2d configuration of nnU-Net;
small batches.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import micro
import numpy as np
import pytest
import torch
from synthetic_plans import nnunet_plans
from synthetic_scans import write_volume

from nnssl import checkpoint, files, finetune
from nnssl.data.plan import Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO, intensity_map
from nnssl.methods import METHODS
from nnssl.train import configure, places, pretrain
from nnssl.train.log import Log
from nnssl.train.pretrain import Options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def collection(tmp_path_factory, phantom_folder) -> Path:
    """$nnUNet_preprocessed with one collection, `made`. Shared: nothing is written to it later."""
    top = tmp_path_factory.mktemp("preprocessed")
    prepare(PrepareRequest("made", top / "nnssl" / "made", [phantom_folder], num_processes=0))
    return top


@pytest.fixture
def slices(collection, tmp_path, monkeypatch):
    """A function that pretrains a method on slices for two steps; the final checkpoint and what was
    said.
    """
    monkeypatch.setenv("nnUNet_preprocessed", str(collection))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(Log, "draw", lambda self: None)
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)

    def run(method: str, **options) -> tuple[Path, str]:
        said = []
        known = {field.name for field in fields(METHODS[method].Config)}
        small = [f"{key}={value}" for key, value in micro.SMALL.items() if key in known]
        chosen = {
            "dims": 2,
            "batch_size": 2,
            "steps": 2,
            "workers": 0,
            "device": "cpu",
            "settings": small,
            **options,
        }
        return pretrain.pretrain(
            Options(method, name="made", preset="tiny", **chosen), said.append
        ), "\n".join(said)

    return run


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_slices(name, slices, collection, tmp_path):
    plan = Plan.load(collection / "nnssl" / "made" / "plan.json")
    crop = configure.fitting_crop(METHODS[name], plan.crop[1:])
    final, said = slices(name)
    assert final == tmp_path / "nnssl" / "made" / f"{name}__tiny_2d" / "checkpoint_final.pth"
    loaded = checkpoint.load(final)
    assert loaded.encoder_config.spatial_dims == 2
    assert loaded.crop == crop
    assert "crop {}x{} at".format(*crop) in said
    assert all(math.isfinite(value) for value in loaded.header["metrics"].values())
    assert "{} x {} voxels (y x)".format(*crop) in checkpoint.describe(loaded)
    (configuration,) = loaded.adaptation_plan["pretrain_plan"]["configurations"].values()
    assert len(configuration["spacing"]) == len(configuration["patch_size"]) == 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shows_slices(name):
    method = micro.method(name, spatial_dims=2).eval()
    with torch.no_grad():
        volumes = method.show(micro.views(method, crop=(32, 32)))
    assert all(volume.ndim == 4 and volume.shape[1] == 1 for volume in volumes.values())


def test_slices_start_a_2d_network(slices, monkeypatch):
    final, _ = slices("simmim")
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(final))
    plans = nnunet_plans()
    finetune.resolve_architecture(plans, "2d")
    network = finetune.build_network(finetune.resolve(plans, "2d"), 1, 3, deep_supervision=False)
    assert any(
        "encoder tensors matched" in line for line in finetune.load_named_checkpoint(network, plans)
    )
    assert plans[INFO]["matched"] == plans[INFO]["total"] == len(list(network.encoder.parameters()))
    for name, tensor in checkpoint.load(final).weights.items():
        if "mask_token" not in name:
            assert torch.equal(network.state_dict()[name], tensor), name
    out = network(torch.randn(2, 1, 48, 40))
    assert out.shape == (2, 3, 48, 40)
    out.square().mean().backward()
    assert network.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_the_size_of_the_crop_says_the_dimensions_as_well(slices):
    final, said = slices("simmim", dims=None, crop=(16, 48))
    assert final.parent.name == "simmim__tiny_2d"
    assert "crop 16x48 at" in said


@pytest.mark.parametrize(
    ("options", "dims"),
    [({}, 3), ({"dims": 2}, 2), ({"crop": (32, 32)}, 2), ({"crop": (32, 32, 32), "dims": 3}, 3)],
)
def test_dimensions(options, dims):
    assert places.dimensions(Options("smit", **options)) == dims


def test_a_batch_too_small_for_the_method_is_said(slices):
    """Where the parts of a step are compared alone, their size counts, not that of the batch."""
    smallest = METHODS["simclr"].smallest_batch
    _, said = slices("simclr", batch_size=smallest, accumulate=2, steps=1)
    assert (
        f"needs at least about {smallest} of them; this run has {smallest // 2}. Try --batch-size "
        f"{smallest}" in said
    )
    _, said = slices("simmim", batch_size=1, steps=1)
    assert "WARNING" not in said
    _, said = slices("smit", batch_size=METHODS["smit"].smallest_batch, accumulate=2, steps=1)
    assert "needs at least about" not in said


@pytest.fixture
def heart(nnunet_env) -> Path:
    """A raw dataset of MRI."""
    folder = nnunet_env["nnUNet_raw"] / "Dataset903_Heart"
    values = np.random.default_rng(0)
    for number in range(2):
        array = values.gamma(2.0, 150.0, (9, 48, 48)).astype(np.float32)
        write_volume(folder / "imagesTr" / f"patient{number}_0000.nii.gz", array, (4.0, 1.5, 1.5))
    files.write_json(
        folder / "dataset.json", {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    )
    return folder


def test_slices_of_mri_are_learnt_from_and_fine_tuned_as_nnunet_normalises_them(heart, monkeypatch):
    monkeypatch.setattr(Log, "draw", lambda self: None)
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)
    options = Options(
        "byol",
        dataset_ids=("903",),
        preset="tiny",
        dims=2,
        crop=(32, 32),
        batch_size=2,
        steps=2,
        workers=0,
        device="cpu",
        settings=("head_hidden=16",),
    )
    loaded = checkpoint.load(pretrain.pretrain(options, lambda _: None))
    assert loaded.hu is None
    assert "keep nnU-Net's normalisation" in checkpoint.describe(loaded)
    assert intensity_map(["ZScoreNormalization"], {}, loaded.hu) is None


def test_ct_and_mri_are_not_mixed_by_accident(heart, phantom_folder):
    mixed = Options("byol", sources=(phantom_folder,), dataset_ids=("903",), dims=2, device="cpu")
    with pytest.raises(ValueError, match="channel 0 of Dataset903_Heart is not CT"):
        pretrain.pretrain(mixed, lambda _: None)
    with pytest.raises(ValueError, match="--hu gives a range of Hounsfield units"):
        pretrain.pretrain(replace(mixed, sources=(), clip=(-100.0, 300.0)), lambda _: None)
