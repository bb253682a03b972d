"""Weights that a training must not start from: each has its message, and nothing of them is in the
network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_trainers import DATASET_JSON, synthetic_plans, synthetic_trainer

from nnssl import checkpoint, finetune
from nnssl.checkpoint import CheckpointError, TransferError
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO
from nnssl.finetune.checkpoint_choice import NoCheckpointError, OriginError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run_folder(nnunet_env, monkeypatch, tmp_path) -> Path:
    """Where the checkpoint of a test lies: the only one, found without being named."""
    monkeypatch.setattr(finetune.plans_file, "DECODER", "light")
    return nnunet_env[checkpoint_choice.RESULTS] / "nnssl" / "ct" / "smit__micro"


def planned(**changes: object) -> dict:
    """Plans that carry the checkpoint found now, and `changes` to what they say of it."""
    plans = synthetic_plans()
    finetune.resolve_architecture(plans, "3d_fullres")
    plans[INFO] |= changes
    return plans


def several(run_folder: Path) -> dict:
    pretrained(run_folder), pretrained(run_folder.with_name("dino__micro"))
    return synthetic_plans()


def truncated(run_folder: Path) -> dict:
    path = pretrained(run_folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return synthetic_plans()


def truncated_after_planning(run_folder: Path) -> dict:
    path = pretrained(run_folder)
    plans = planned()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return plans


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def malicious(run_folder: Path) -> dict:
    path = pretrained(run_folder)
    plans = planned(sha256=None)
    content = checkpoint.read(path)
    torch.save(content | {"citations": [Malicious(run_folder / "executed")]}, path)
    return plans


def of_another_architecture(run_folder: Path) -> dict:
    """Its last tensors fit and its first do not, or the other way round: either way, none is
    taken.
    """
    path = pretrained(run_folder)
    plans = planned(sha256=None)
    pretrained(path.parent, replace(ENCODER, depths=(1, 1, 2, 1)))
    return plans


def wider_encoder(run_folder: Path) -> dict:
    path = pretrained(run_folder)
    plans = planned(sha256=None)
    pretrained(path.parent, replace(ENCODER, embed_dim=12))
    return plans


def in_2d(run_folder: Path) -> dict:
    pretrained(run_folder, replace(ENCODER, spatial_dims=2))
    return synthetic_plans()


def of_two_channels(run_folder: Path) -> dict:
    pretrained(run_folder, replace(ENCODER, in_channels=2))
    return synthetic_plans()


def another_than_planned(run_folder: Path) -> dict:
    path = pretrained(run_folder)
    plans = planned()
    pretrained(path.parent, seed=1)
    return plans


def someone_elses(run_folder: Path) -> dict:
    run_folder.mkdir(parents=True)
    torch.save(
        {"state_dict": {"conv.weight": torch.zeros(3)}}, run_folder / checkpoint_choice.FINAL
    )
    return synthetic_plans()


REFUSED: dict[Callable, tuple[type, str]] = {
    several: (
        NoCheckpointError,
        r"2 pretrained checkpoints were found(.|\n)*dino__micro(.|\n)*export nnssl_checkpoint=",
    ),
    truncated: (
        CheckpointError,
        r"smit__micro/checkpoint_final.pth cannot be read as a checkpoint: it is truncated",
    ),
    truncated_after_planning: (CheckpointError, r"cannot be read as a checkpoint: it is truncated"),
    malicious: (
        CheckpointError,
        r"cannot be read as a checkpoint: it holds more than tensors and plain values, namely \S+",
    ),
    of_another_architecture: (
        TransferError,
        r"does not fit the network; nothing was loaded:\n  unexpected in the file",
    ),
    wider_encoder: (
        TransferError,
        r"does not fit the network; nothing was loaded:\n  other shape: (.|\n)*\.\.\. and \d+ more",
    ),
    in_2d: (
        OriginError,
        r"was pretrained in 2D, but this configuration is 3D(.|\n)*SwinScratchTrainer",
    ),
    of_two_channels: (
        TransferError,
        r"pretrained on 2 channels, but this image has 1; nothing was loaded",
    ),
    another_than_planned: (OriginError, r"has changed since (.|\n)*nnssl_plan -d DATASET -c "),
    someone_elses: (
        CheckpointError,
        r"is not a checkpoint of nnssl_pretrain: it holds \['state_dict'\]",
    ),
}


@pytest.mark.parametrize("weights", REFUSED, ids=lambda weights: weights.__name__)
def test_a_training_does_not_start_from(run_folder, weights):
    """The network, where there is one by then, is that of a random start, bit by bit; the plans
    claim nothing.
    """
    trainer = synthetic_trainer("SwinSSLTrainer", weights(run_folder))
    torch.manual_seed(0)
    kind, message = REFUSED[weights]
    with pytest.raises(kind, match=message):
        trainer.initialize()
    assert not (run_folder / "executed").exists()
    if trainer.network is not None:
        torch.manual_seed(0)
        resolved = trainer.configuration_manager.configuration
        fresh = finetune.build_network(
            resolved, trainer.num_input_channels, 3, deep_supervision=True
        )
        for name, tensor in trainer.network.state_dict().items():
            assert torch.equal(tensor, fresh.state_dict()[name]), name
    assert "matched" not in trainer.plans_manager.plans.get(INFO, {})
    assert "encoder tensors matched" not in Path(trainer.log_file).read_text()


def test_the_malicious_file_would_do_its_work_elsewhere(run_folder):
    """Or the test above would show nothing."""
    malicious(run_folder)
    torch.load(run_folder / checkpoint_choice.FINAL, weights_only=False)
    assert (run_folder / "executed").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_is_inflated_to_any_number(run_folder, channels):
    pretrained(run_folder)
    names = {str(c): "CT" for c in range(channels)}
    plans = synthetic_plans(schemes=("CTNormalization",) * channels)
    properties = plans["foreground_intensity_properties_per_channel"]
    properties |= {str(c): properties["0"] for c in range(channels)}
    trainer = synthetic_trainer(
        "SwinSSLTrainer", plans, dataset_json=DATASET_JSON | {"channel_names": names}
    )
    trainer.initialize()
    info = trainer.plans_manager.plans[INFO]
    assert info["matched"] == info["total"] == len(list(trainer.network.encoder.parameters()))
    assert trainer.network.encoder.patch_embed.proj.weight.shape[1] == channels


def test_the_labels_of_a_cascade_start_at_zero(run_folder):
    pretrained(run_folder)
    trainer = synthetic_trainer("SwinSSLTrainer", synthetic_plans(), "3d_cascade_fullres")
    trainer.initialize()
    stem = trainer.network.encoder.patch_embed.proj.weight
    given = checkpoint.load(run_folder / checkpoint_choice.FINAL).weights[
        "encoder.patch_embed.proj.weight"
    ]
    assert torch.equal(stem[:, :1], given)
    assert stem.shape[1] == 3
    assert not stem[:, 1:].any()
    assert "2 channels of labels start at zero" in Path(trainer.log_file).read_text()
