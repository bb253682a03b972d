"""Voxels predicted by the fine-tuning network's decoder, and that decoder carried over to the
fine-tuning.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from micro import CROP, method, run, steps, views
from synthetic_checkpoints import pretrained
from synthetic_trainers import synthetic_plans, synthetic_trainer

from nnssl import checkpoint, finetune
from nnssl.checkpoint.decoder_header import HEADS
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO
from nnssl.network.decoders import DECODERS
from nnssl.network.swin_unetr import SwinUNETR


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """The checkpoint of a SimMIM with the light decoder, of two steps."""
    pretraining = run(tmp_path / "ssl", "simmim", {"decoder": "light", "mask_block": 8}, steps=2)
    for (
        parameter
    ) in pretraining.method.parameters():  # nothing is left as another start would have it
        parameter.data += 0.01 * torch.randn_like(parameter)
    return pretraining.finish({})


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_the_prediction_of_hidden_voxels_does_not_see_them(name, decoder):
    instance = method(name, decoder=decoder, mask_block=8).eval()
    looked = views(instance)
    covered = looked["hidden_blocks"]
    for axis in (-1, -2, -3):
        covered = covered.repeat_interleave(8, axis)
    covered = covered.unsqueeze(-4)
    other = looked | {
        "image": torch.where(covered, torch.randn_like(looked["image"]), looked["image"])
    }
    with torch.no_grad():
        first, second = instance.show(looked)["predicted"], instance.show(other)["predicted"]
    hidden = covered.flatten(0, covered.ndim - 5)
    assert hidden.any()
    torch.testing.assert_close(first[hidden], second[hidden])


@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_it_learns_one_batch(name, one_thread):
    rows = steps(method(name, decoder="light", mask_block=8), 30, lr=3e-3, fixed=True)
    key = "mip" if name == "smit" else "total"
    assert rows[-1][key] < 0.7 * rows[0][key]


def test_the_encoder_that_goes_with_the_decoder_is_the_students():
    assert method("smit", decoder="light", mask_block=8).encoder.mask_token is not None
    instance = method("smit", decoder="light", mask_block=8)
    assert instance.encoder is instance.student.encoder
    instance = method("smit")
    assert instance.encoder is instance.teacher.model.encoder
    assert instance.network_decoder is None


def test_an_unknown_decoder_is_refused():
    with pytest.raises(
        ValueError, match="unknown decoder 'heavy'; known: swinunetr, light, nnunet"
    ):
        method("simmim", decoder="heavy")


def plans() -> dict:
    """Of patches large enough to be halved five times, as in the pretraining."""
    adapted = synthetic_plans()
    adapted["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]
    return adapted


def test_all_of_the_decoder_but_its_heads_is_carried_over(final, tmp_path, nnunet_env, monkeypatch):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(final))
    loaded = checkpoint.load(final)
    assert loaded.decoder == {"name": "light", "norm": "dataset"}
    assert not any(HEADS in name for name in loaded.weights)
    trainer = synthetic_trainer("SwinSSLTrainer", plans())
    trainer.initialize()
    state = finetune.unwrap(trainer.network).state_dict()
    carried = [name for name in state if name in loaded.weights]
    learnt = [
        name
        for name in state
        if not name.startswith("encoder.intensity.") and ".seg_layers." not in name
    ]
    assert sorted(carried) == sorted(learnt)
    steps_differ = trainer.configuration_manager.configuration["architecture"]["arch_kwargs"][
        "encoder"
    ]["steps"]
    assert not steps_differ
    for name in carried:
        torch.testing.assert_close(state[name], loaded.weights[name], rtol=0, atol=0)
    arguments = trainer.configuration_manager.configuration["architecture"]["arch_kwargs"]
    assert (arguments["decoder"]["name"], arguments["image_skip"]) == ("light", "mapped")
    info = trainer.plans_manager.plans[INFO]
    assert not finetune.needs_moments(finetune.unwrap(trainer.network), info)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*"))
    assert (
        f"{info['decoder_matched']} of {info['decoder_matched']} tensors of the decoder light "
        "matched" in log
    )


def test_its_twin_from_a_random_start_is_the_same_network_with_none_of_the_weights(
    final, nnunet_env, monkeypatch
):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(final))
    trainer = synthetic_trainer("SwinScratchTrainer", plans())
    trainer.initialize()
    arguments = trainer.configuration_manager.configuration["architecture"]["arch_kwargs"]
    assert (arguments["decoder"]["name"], arguments["image_skip"]) == ("light", "mapped")
    state = finetune.unwrap(trainer.network).state_dict()
    weight = "decoder.lifts.0.conv.weight"
    assert not torch.equal(state[weight], checkpoint.load(final).weights[weight])
    assert finetune.needs_moments(
        finetune.unwrap(trainer.network), trainer.plans_manager.plans[INFO]
    )


def load(network: SwinUNETR, path: Path) -> str:
    return "\n".join(
        finetune.load_named_checkpoint(network, {INFO: {"checkpoint_path": str(path)}})
    )


def network(path: Path, channels: int = 1, **changes) -> SwinUNETR:
    loaded = checkpoint.load(path)
    options = {
        "encoder": loaded.header["encoder"] | {"drop_path": 0.0},
        "decoder": loaded.decoder,
    } | changes
    return SwinUNETR(channels, 3, False, **options)


def test_equal_channels_give_what_one_gave(final):
    one, two = network(final), network(final, channels=2)
    assert "inflated from 1 to 2 input channels" in load(two, final)
    load(one, final)
    two.decoder.heads.load_state_dict(one.decoder.heads.state_dict())
    image = torch.randn(1, 1, *CROP)
    torch.testing.assert_close(
        two.eval()(image.expand(-1, 2, -1, -1, -1)), one.eval()(image), rtol=1e-4, atol=1e-5
    )


def test_another_decoder_or_other_steps_start_at_random_and_the_log_says_so(final):
    assert "the decoder starts from random weights: the plans have nnunet" in load(
        network(final, decoder={"name": "nnunet"}), final
    )
    steps = [[1, 2, 2], *[[2, 2, 2]] * 4]
    encoder = checkpoint.load(final).header["encoder"] | {"steps": steps}
    assert "the decoder starts from random weights: its steps are" in load(
        network(final, encoder=encoder), final
    )


def test_a_checkpoint_without_a_decoder_says_nothing_of_it(tmp_path):
    path = pretrained(tmp_path)
    assert "decoder" not in load(network(path, decoder={"name": "light", "norm": "dataset"}), path)


def test_a_decoder_that_does_not_fit_loads_nothing(final):
    content = checkpoint.read(final)
    name = "decoder.lifts.0.conv.weight"
    content["network_weights"][name] = content["network_weights"][name][:3].clone()
    checkpoint.write(final, content)
    message = r"the decoder's tensors must be those of .*; got \['lifts.0.conv.weight'"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        load(network(final), final)
