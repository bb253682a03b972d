"""Axes that are not halved: what adapted weights compute, any size through the network, when plans
ask for it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_plans import nnunet_plans

from nnssl import checkpoint, finetune
from nnssl.cpu import upsampling
from nnssl.encoder.adapt_strides import adapt
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.finetune.architecture import architecture, steps_of
from nnssl.finetune.strides import steps_for
from nnssl.network.decoders import DECODERS, UpBlock
from nnssl.network.swin_unetr import SwinUNETR, output_sizes

pytestmark = pytest.mark.usefixtures("one_thread")

THIN = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 1), (2, 2, 2))
FLAT = ((1, 2), (2, 1), (2, 2), (1, 1), (2, 2))


def seeded(config: SwinConfig) -> Swin:
    """A Swin whose norms and biases are far from where they start, in double precision."""
    torch.manual_seed(0)
    encoder = Swin(config).double()
    for name, parameter in encoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.3)
    return encoder


def stretched(x: torch.Tensor, step: tuple[int, ...], first: int) -> torch.Tensor:
    """Every slice twice, along the axes that `step` leaves as they are; `first` is the first of
    them in `x`.
    """
    for axis, length in enumerate(step, start=first):
        x = x.repeat_interleave(3 - length, dim=axis)
    return x


@pytest.mark.parametrize("steps", [THIN, FLAT])
@pytest.mark.parametrize(
    ("windows", "merging"), [("exact", "all"), ("monai", "all"), ("monai", "legacy")]
)
def test_adapted_weights_see_a_volume_as_pretrained_ones_see_it_stretched(steps, windows, merging):
    """Documented in encoder.md: exactly so for the patch embedding and for each merge by itself."""
    dims = len(steps[0])
    config = replace(ENCODER, spatial_dims=dims, windows=windows, merging=merging, axes="xyz")
    full, thin = seeded(config), Swin(replace(config, steps=steps)).double()
    weights, explained = adapt(full.state_dict(), full.config, thin.config)
    thin.load_state_dict(weights)
    image = torch.randn(2, 1, *(7, 9, 6)[:dims]).double()
    embedded = full.patch_embed(stretched(image, steps[0], 2))
    torch.testing.assert_close(thin.patch_embed(image), embedded)
    for number, (own, pretrained_one) in enumerate(
        zip(thin.stages, full.stages, strict=True), start=1
    ):
        tokens = torch.randn(2, *(4, 3, 5)[:dims], thin.channels[number - 1]).double()
        wanted = pretrained_one.downsample(stretched(tokens, steps[number], 1))
        torch.testing.assert_close(own.downsample(tokens), wanted)
    stems = {"patch_embed.proj.weight"}
    merges = {
        f"layers{i}.0.downsample.reduction.weight"
        for i, step in enumerate(steps)
        if i and 1 in step
    }
    # old merges join the same tokens, some more often
    changed = stems | (merges if merging == "all" else set())
    assert {name for name in explained if "norm" not in name and "bias" not in name} == changed
    weights = full.state_dict()
    same, nothing = adapt(weights, config, config)
    assert nothing == {}
    assert all(same[name] is tensor for name, tensor in weights.items())


def test_a_transfer_adapts_inflates_and_says_so(tmp_path):
    loaded = checkpoint.load(pretrained(tmp_path))
    encoder = Swin(replace(ENCODER, in_channels=2, steps=THIN))
    done = checkpoint.transfer(loaded, encoder)
    assert done.matched == done.total == len(list(encoder.parameters()))
    stem = done.explained["patch_embed.proj.weight"]
    assert (
        stem == "adapted exactly from a step of 2 x 2 x 2 to one of 1 x 2 x 2, inflated from 1 "
        "to 2 input channels"
    )
    assert "1 x 2 x 1" in done.explained["layers3.0.downsample.reduction.bias"]
    given = loaded.weights["encoder.patch_embed.proj.weight"]
    torch.testing.assert_close(
        encoder.patch_embed.proj.weight[:, :1], given.sum(2, keepdim=True) / 2
    )


def test_what_was_not_halved_cannot_be_halved_later(tmp_path):
    thin = checkpoint.load(pretrained(tmp_path, replace(ENCODER, steps=THIN)))
    with pytest.raises(checkpoint.TransferError, match=r"other shape: patch_embed.proj.weight"):
        checkpoint.transfer(thin, Swin(ENCODER))
    assert checkpoint.transfer(thin, Swin(replace(ENCODER, steps=THIN))).explained.keys() == {
        "mask_token"
    }


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(14, 40, 36), (3, 33, 47), (1, 32, 32), (37, 48)])
def test_any_size_and_every_parameter_a_gradient(decoder, size):
    steps = THIN if len(size) == 3 else FLAT
    torch.manual_seed(0)
    config = replace(ENCODER, spatial_dims=len(size), steps=steps).to_dict()
    net = SwinUNETR(2, 3, True, encoder=config, decoder=decoder)
    outputs = net(torch.randn(2, 2, *size))
    assert [tuple(o.shape[2:]) for o in outputs] == output_sizes(size, steps)
    assert len(size) == 2 or [s[0] for s in output_sizes(size, steps)] == [size[0]] * 3 + [
        -(-size[0] // 2)
    ]
    sum(o.square().mean() for o in outputs).backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("step", [(1, 2, 2), (2, 1), (1, 1, 2)])
def test_composing_upsampling_and_convolution_is_the_same_function(step):
    torch.manual_seed(0)
    block = UpBlock(step, 6, 4).double()
    coarse = (3, 4, 2)[: len(step)]
    x = torch.randn(2, 6, *coarse).double()
    skip = torch.randn(2, 4, *(n * s for n, s in zip(coarse, step, strict=True))).double()
    weights = [part.weight for part in (block.upsample, block.block.conv1, block.block.conv3)]
    joined = upsampling.join(x, skip, block.step, *weights)
    for one, other in zip(joined, block._one_by_one(x, skip), strict=True):
        torch.testing.assert_close(one, other)


def test_steps_of_two_everywhere_are_the_default():
    assert SwinConfig(steps=((2, 2, 2),) * 5) == SwinConfig()
    thin = replace(ENCODER, steps=THIN)
    assert SwinConfig.from_dict(json.loads(json.dumps(thin.to_dict()))) == thin
    assert (
        Swin(replace(ENCODER, steps=((2, 2, 2),) * 5)).state_dict().keys()
        == Swin(ENCODER).state_dict().keys()
    )


@pytest.mark.parametrize("steps", [((2, 2, 2),), ((2, 2),) * 5, ((3, 2, 2),) * 5, ((0, 2, 2),) * 5])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps are 5 tuples of 3 numbers, each 1 or 2"):
        SwinConfig(steps=steps)


@pytest.mark.parametrize(
    ("spacing", "size", "thin_axis"),
    [
        ((1.0, 1.0, 1.0), (96, 96, 96), (2, 2, 2, 2, 2)),
        ((1.9, 1.0, 1.0), (96, 96, 96), (2, 2, 2, 2, 2)),
        ((2.0, 1.0, 1.0), (64, 96, 96), (1, 2, 2, 2, 2)),
        ((10.0, 1.5, 1.5), (14, 256, 224), (1, 1, 2, 2, 2)),  # as ACDC
        ((10.0, 1.5, 1.5), (3, 256, 224), (1, 1, 2, 2, 1)),  # nothing left to halve
        ((5.0, 0.3, 0.3), (20, 512, 512), (1, 1, 1, 1, 2)),
        ((1.0, 1.0, 1.0), (8, 128, 128), (2, 2, 2, 1, 1)),  # of one token from the third step on
        ((3.0, 1.0, 1.0), (4, 128, 128), (1, 2, 2, 1, 1)),
    ],
)
def test_an_axis_of_wide_spacing_waits_until_the_others_have_caught_up(spacing, size, thin_axis):
    steps = steps_for(spacing, size)
    assert tuple(step[0] for step in steps) == thin_axis
    assert all(step[1:] == (2, 2) for step in steps)


def test_what_counts_is_the_shape_of_a_token_in_the_pretraining():
    assert steps_for((6.0, 1.0, 1.0), (32, 96, 96), (6.0, 1.0, 1.0)) == ((2, 2, 2),) * 5
    assert steps_for((2.0, 2.0, 2.0), (96, 96, 96), (8.0, 2.0, 2.0))[:2] == ((2, 1, 1), (2, 1, 1))


def test_the_encoder_has_its_steps_in_the_axes_as_read_and_the_plans_in_theirs():
    plans = nnunet_plans() | {"transpose_forward": [2, 0, 1]}  # x has the widest spacing
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 1.0]
    entry = architecture(plans, plans["configurations"]["3d_fullres"], ENCODER, "light", None)
    assert entry["arch_kwargs"]["encoder"]["steps"][0] == [2, 2, 1]
    resolved = plans["configurations"]["3d_fullres"] | {"architecture": entry}
    assert steps_of(resolved)[:2] == ((1, 2, 2), (2, 2, 2))
    scales = finetune.deep_supervision_scales(resolved)
    assert [scale[0] for scale in scales] == [1, 1, 0.5, 0.25]
    network = finetune.build_network(resolved, 1, 3, True)
    outputs = network(torch.randn(1, 1, *resolved["patch_size"]))
    sizes = [
        [round(n * s) for n, s in zip(resolved["patch_size"], scale, strict=True)]
        for scale in scales
    ]
    assert [list(o.shape[2:]) for o in outputs] == sizes


def test_a_checkpoint_of_thin_tokens_keeps_its_own_steps():
    plans = nnunet_plans()
    thin = replace(ENCODER, steps=THIN)
    entry = architecture(plans, plans["configurations"]["3d_fullres"], thin, "light", None)
    assert SwinConfig.from_dict(entry["arch_kwargs"]["encoder"]) == thin
