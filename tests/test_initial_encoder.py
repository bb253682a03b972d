"""A pretraining that starts from an earlier checkpoint."""

from __future__ import annotations

from dataclasses import replace

import micro
import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained

from nnssl import checkpoint
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS
from nnssl.train import initial_encoder


def test_the_encoder_is_that_of_the_checkpoint(tmp_path):
    path = pretrained(tmp_path, seed=3)
    encoder, header = initial_encoder.encoder("smit", path, 3, 0.2, checkpointing=False)
    assert encoder.config == replace(ENCODER, drop_path=0.2)
    saved = checkpoint.load(path)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, saved.weights[f"encoder.{name}"])
    assert header["start"]["sha256"] == saved.sha256
    assert header["start"]["supervised"] is False
    (labelled := dict(saved.header))["start"] = {"supervised": True}
    continued = replace(saved, header=labelled)
    assert continued.has_seen_labels
    assert continued.as_start("a.pth")["supervised"]  # also of an encoder that is inflated then


def test_weights_without_a_mask_token_do(tmp_path):
    content = torch.load(pretrained(tmp_path), weights_only=True)
    del content["network_weights"]["encoder.mask_token"]
    checkpoint.write(tmp_path / "foreign.pth", content)
    encoder, _ = initial_encoder.encoder(
        "smit", tmp_path / "foreign.pth", 3, 0.0, checkpointing=False
    )
    assert "mask_token" in dict(encoder.named_parameters())


def test_a_mask_token_of_a_coarser_grid_is_not_that_of_a_patch(tmp_path):
    """With `visible_only` it is as wide as that grid's tokens."""
    content = torch.load(pretrained(tmp_path), weights_only=True)
    content["network_weights"]["encoder.mask_token"] = torch.ones(4 * ENCODER.embed_dim)
    checkpoint.write(tmp_path / "visible.pth", content)
    encoder, _ = initial_encoder.encoder(
        "smit", tmp_path / "visible.pth", 3, 0.0, checkpointing=False
    )
    assert encoder.mask_token.shape == (ENCODER.embed_dim,)


def test_other_dimensions_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"for 3D images of 1 channel.*this pretraining is 2D.*--dims 3"
    ):
        initial_encoder.encoder("smit", pretrained(tmp_path), 2, 0.0, checkpointing=False)


def test_slices_can_be_inflated(tmp_path):
    path = pretrained(tmp_path, replace(ENCODER, spatial_dims=2))
    with pytest.raises(ValueError, match=r"or --dims 2, or inflate this one: nnssl_convert .*pth"):
        initial_encoder.encoder("smit", path, 3, 0.0, checkpointing=False)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_continues_has_the_encoder_that_its_header_tells(name):
    """The header holds the exported one: a teacher has no drop path, the student has."""
    header = micro.method(name, drop_path=0.2).encoder.config.to_dict()
    encoder = initial_encoder.of_run(header, 0.2, checkpointing=False)
    own = micro.method(name, drop_path=0.2)
    assert encoder.config == replace(ENCODER, drop_path=0.2)
    type(own)(encoder, own.config).load_state_dict(own.state_dict())


def test_without_one_it_is_the_preset():
    encoder, header = initial_encoder.encoder("tiny", None, 2, 0.1, checkpointing=False)
    assert isinstance(encoder, Swin)
    assert (encoder.config.spatial_dims, encoder.config.drop_path, header) == (2, 0.1, {})
