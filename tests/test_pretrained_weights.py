"""nnU-Net's `-pretrained_weights` with our trainers: what is taken, what stays the dataset's, what
is refused.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from synthetic_checkpoints import pretrained
from synthetic_trainers import DATASET_JSON, synthetic_plans, synthetic_trainer

from nnssl import finetune
from nnssl.encoder.presets import preset
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.pretrained_weights import HEADS, INTENSITY, PretrainedWeightsError

pytestmark = pytest.mark.usefixtures("one_thread")


def plans_of(mean: float, channels: int = 1) -> dict:
    """Of a dataset with this mean of the foreground."""
    plans = synthetic_plans(schemes=("CTNormalization",) * channels)
    for properties in plans["foreground_intensity_properties_per_channel"].values():
        properties["mean"] = mean
    return plans


@pytest.fixture
def ready(nnunet_env, monkeypatch, tmp_path):
    """A function that gives an initialised trainer on a dataset whose foreground has this mean."""
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "ssl")))
    monkeypatch.setattr(finetune.plans_file, "DECODER", "light")

    def make(
        mean: float,
        name: str = "SwinSSLTrainer",
        channels: int = 1,
        dataset_json: dict | None = None,
    ):
        plans = plans_of(mean, channels)
        json = (dataset_json or DATASET_JSON) | {
            "channel_names": {str(c): "CT" for c in range(channels)}
        }
        trainer = synthetic_trainer(name, plans, dataset_json=json)
        trainer.initialize()
        return trainer

    return make


def trained(trainer, path: Path) -> Path:
    """Its checkpoint with other weights than it began with."""
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.125)
    trainer.save_checkpoint(str(path))
    return path


def state(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def test_weights_are_taken_and_the_intensity_map_stays_the_datasets(ready, tmp_path):
    """T1: nnU-Net copied the other dataset's HU map over it in silence."""
    soft, bone = (
        ready(40.0),
        ready(700.0, dataset_json=DATASET_JSON | {"labels": {"background": 0, "bone": 1}}),
    )
    path, before = trained(soft, tmp_path / "soft.pth"), state(bone)
    load_pretrained_weights(bone.network, str(path))
    theirs, after = state(soft), state(bone)
    assert not torch.equal(theirs[f"{INTENSITY}shift"], before[f"{INTENSITY}shift"])
    for name, tensor in after.items():
        stays = HEADS in name or name.startswith(INTENSITY)
        assert torch.equal(tensor, before[name] if stays else theirs[name]), name
    heads = sum(HEADS in name for name in after)
    learnt = sum(not name.startswith(INTENSITY) for name in after)
    assert (
        f"{path} ({learnt - heads} of {learnt} tensors; the {heads} of the heads are reinitialised"
        in log_of(bone)
    )
    assert "WARNING" not in log_of(bone)


def test_the_moments_of_a_loaded_decoder_stay(ready, tmp_path, monkeypatch):
    """They were measured again, on a decoder that had learnt with others."""
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda *_: None)
    soft, bone = ready(40.0), ready(700.0)
    load_pretrained_weights(bone.network, str(trained(soft, tmp_path / "soft.pth")))
    moments = {name: tensor for name, tensor in state(bone).items() if ".norms." in name}
    bone.on_train_start()
    assert moments
    for name, tensor in moments.items():
        assert torch.equal(bone.network.state_dict()[name], tensor), name


def test_a_resumed_model_has_its_own_intensity_map_also_in_a_trainer_that_began_anew(
    ready, tmp_path
):
    """As `--c` and `--val_best` do it."""
    soft = ready(40.0)
    path = trained(soft, tmp_path / "soft.pth")
    fresh, begun = synthetic_trainer("SwinSSLTrainer", plans_of(40.0)), ready(700.0)
    for trainer in (fresh, begun):
        trainer.load_checkpoint(str(path))
        assert all(
            torch.equal(tensor, state(soft)[name]) for name, tensor in state(trainer).items()
        )
        assert "another training" not in log_of(trainer)


def test_a_network_that_saw_other_intensities_is_taken_with_a_warning(ready, tmp_path):
    soft = ready(40.0)
    path = trained(soft, tmp_path / "soft.pth")
    saved = torch.load(path, weights_only=False)
    saved["init_args"]["plans"]["pretrain_info"]["hu"]["low"] = -175.0
    torch.save(saved, path)
    bone = ready(700.0)
    load_pretrained_weights(bone.network, str(path))
    assert f"WARNING: the network in {path} saw other intensities" in log_of(bone)


def test_a_decoder_that_saw_other_values_is_taken_with_a_warning(ready, tmp_path):
    path = trained(ready(40.0), tmp_path / "soft.pth")
    saved = torch.load(path, weights_only=False)
    plans = saved["init_args"]["plans"]
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arguments.pop("image_skip") == "raw"  # as in plans from before it
    torch.save(saved, path)
    bone = ready(700.0)
    load_pretrained_weights(bone.network, str(path))
    said = f"{path} saw the image as in the pretraining, but here it sees the image as nnU-Net"
    assert f"WARNING: the decoder in {said}" in log_of(bone)


def of_the_pretraining(ready, path: Path) -> Path:
    return pretrained(path.parent / "ssl")


def of_nnunets_own_network(ready, path: Path) -> Path:
    plans = {"plans_name": "nnUNetPlans"}
    weights = {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(1)}
    torch.save(
        {
            "network_weights": weights,
            "trainer_name": "nnUNetTrainer",
            "init_args": {"plans": plans},
        },
        path,
    )
    return path


def of_two_channels(ready, path: Path) -> Path:
    return trained(ready(40.0, channels=2), path)


def deeper(ready, path: Path) -> Path:
    """nnU-Net itself would take the part of it that fits."""
    saved = torch.load(trained(ready(40.0), path), weights_only=False)
    weights = saved["network_weights"]
    blocks = {name: tensor for name, tensor in weights.items() if ".layers3.0.blocks.0." in name}
    weights |= {name.replace("blocks.0", "blocks.1"): tensor for name, tensor in blocks.items()}
    torch.save(saved, path)
    return path


def shallower(ready, path: Path) -> Path:
    saved = torch.load(trained(ready(40.0), path), weights_only=False)
    del saved["network_weights"]["encoder.layers2.0.blocks.0.norm1.weight"]
    torch.save(saved, path)
    return path


def with_other_windows(ready, path: Path) -> Path:
    """The same tensors, from which another encoder computes something else."""
    saved = torch.load(trained(ready(40.0), path), weights_only=False)
    plans = saved["init_args"]["plans"]
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["encoder"] |= {"windows": "monai", "drop_path": 0.2}
    torch.save(saved, path)
    return path


def of_a_random_start(ready, path: Path) -> Path:
    """Of the preset `tiny`, and without a checkpoint to plan from."""
    saved = torch.load(trained(ready(40.0), path), weights_only=False)
    plans = saved["init_args"]["plans"]
    del plans["pretrain_info"]
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["encoder"] |= preset("tiny").to_dict()
    del saved["network_weights"]["encoder.layers2.0.blocks.0.norm1.weight"]
    torch.save(saved, path)
    return path


REFUSED = {
    with_other_windows: (
        r"another encoder \(windows monai in the file, exact here\).*nnssl_plan -d DATASET -c "
    ),
    of_a_random_start: r"nnssl_plan -d DATASET -a tiny --decoder light --name NAME",
    of_the_pretraining: (
        r"checkpoint of a pretraining.*nnssl_plan -d DATASET -c \S+checkpoint_final.pth "
        r"--name NAME"
    ),
    of_nnunets_own_network: (
        r"nnUNetv2_train DATASET \S+ FOLD -tr nnUNetTrainer -p nnUNetPlans "
        r"-pretrained_weights "
    ),
    of_two_channels: (
        r"images of 2 channel\(s\), but these have 1.*nnssl_plan -d DATASET -c \S+ "
        r"--decoder light"
    ),
    deeper: (
        r"\d+ tensors differ, such as encoder.layers3.*missing here\)"
        r".*nnssl_plan -d DATASET -c "
    ),
    shallower: (
        r"1 tensors differ, such as encoder.layers2.*missing in the file"
        r".*nnssl_plan -d DATASET -c "
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_does_not_fit_is_refused_with_the_line_to_type(ready, tmp_path, case):
    """U1: among others a checkpoint of the pretraining, given to -pretrained_weights."""
    path = case(ready, tmp_path / "other.pth")
    trainer = ready(700.0)
    before = state(trainer)
    with pytest.raises(PretrainedWeightsError, match=REFUSED[case]) as error:
        load_pretrained_weights(trainer.network, str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(trainer).items())


def test_where_the_loader_is_not_recognised_the_intensity_map_stays_nevertheless(ready, tmp_path):
    """A newer nnU-Net may call its function otherwise."""
    soft, bone = ready(40.0), ready(700.0)
    before = state(bone)
    bone.network.load_state_dict(deepcopy(soft.network.state_dict()))
    assert torch.equal(state(bone)[f"{INTENSITY}shift"], before[f"{INTENSITY}shift"])
    assert "another training" in log_of(bone)


def test_a_scratch_training_may_start_from_labels_as_well(ready, tmp_path):
    path = trained(ready(40.0), tmp_path / "soft.pth")
    trainer = ready(700.0, "SwinScratchTrainer")
    load_pretrained_weights(trainer.network, str(path))
    assert f"Pretrained weights of another training: {path}" in log_of(trainer)
