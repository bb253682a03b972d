"""What a reader may rely on in all methods and all trainers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from synthetic_trainers import trainer_class

from nnssl.doctor.discovery import TRAINERS
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

# every method, and settings with which one asks more of its encoder
CASES = [(name, {}) for name in METHODS] + [
    ("simmim", {"visible_only": True, "mask_block": 8}),
    ("simmim", {"decoder": "light", "mask_block": 8}),
    ("smit", {"visible_only": True, "mask_block": 8}),
    ("smit", {"w_mip": 0.0, "w_itd": 0.0, "mask_block": 8}),  # the last stages are not read
    ("smit", {"w_parcels": 1.0}),
    ("ibot", {"mask_block": 32}),
    ("mocov3", {"freeze_patches": False}),
]


def state(encoder: Swin) -> dict[str, object]:
    """All that a method could change: modules, attributes, tensors and what is asked of them."""
    found: dict[str, object] = {}
    for path, module in encoder.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}
        found[f"module {path}"] = (id(module), type(module), module.training, sorted(own))
        found[f"hooks {path}"] = [len(v) for k, v in own.items() if k.endswith("hooks")]
        found[f"names {path}"] = [name for name, p in module._parameters.items() if p is not None]
    for name, parameter in encoder.named_parameters():
        found[name] = (id(parameter), parameter.requires_grad, parameter.grad is None)
    return found


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_a_method_leaves_the_encoder_it_is_given_as_it_is(name, settings):
    config = micro.config(name, **settings)
    encoder = Swin(replace(micro.ENCODER, drop_path=config.drop_path), maskable=True)
    before = state(encoder)
    tensors = {key: value.clone() for key, value in encoder.state_dict().items()}
    method = METHODS[name](encoder, config).train()
    micro.steps(method, 2, crop=(32, 32, 32))
    assert state(encoder) == before
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, tensors[key]), key
    assert not {id(p) for p in method.parameters()} & {id(p) for p in encoder.parameters()}


def test_a_copy_for_a_method_that_hides_nothing_has_no_mask_token():
    encoder = Swin(micro.ENCODER, maskable=True)
    drawn = torch.get_rng_state()
    masked, plain = encoder.copied(maskable=True), encoder.copied(maskable=False)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert plain.mask_token is None
    assert masked.state_dict().keys() - plain.state_dict().keys() == {"mask_token"}
    for key, value in plain.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key


def test_shapes_are_as_annotations_say():
    """In a process of its own: the checks are put in while modules are imported."""
    script = Path(__file__).with_name("checked_shapes.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=script.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all shapes are as they are said to be" in done.stdout


# -- trainers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_of_our_network_stand_side_by_side(name):
    """None of them is another with a part taken back."""
    from nnssl.trainers.nnssl_swin import SwinTrainer

    kind = trainer_class(name)
    assert kind.__bases__ == (SwinTrainer,)
    assert kind.start is not SwinTrainer.start


def test_their_base_is_no_trainer_to_type(nnunet_env):
    from nnssl.trainers.nnssl_swin import SwinTrainer

    with pytest.raises(NotImplementedError, match="train with -tr SwinSSLTrainer"):
        SwinTrainer.start(SwinTrainer.__new__(SwinTrainer))
