"""The network: any size, one state_dict, MONAI's numbers, nnU-Net's intensities, a gradient for
every parameter.
"""

from __future__ import annotations

from copy import deepcopy
from pydoc import locate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from micro import ENCODER

from nnssl import checkpoint
from nnssl.cpu import upsampling as composed
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.norms import formula, instance_norm
from nnssl.encoder.swin import Swin
from nnssl.finetune import moments
from nnssl.finetune.architecture import intensity_map
from nnssl.hu import HUPolicy
from nnssl.network.decoders import DECODERS, UpBlock
from nnssl.network.layers import aligned_linear
from nnssl.network.norm_act import SLOPE, norm_act, norm_of
from nnssl.network.swin_unetr import Intensity, SwinUNETR, output_sizes
from nnssl.types import NETWORK_CLASS

HU = HUPolicy(low=-900.0, high=1100.0, mean=-40.0, std=310.0)
# Small, thin, odd, and one whose deepest map is a single voxel.
SIZES = [(32, 32, 32), (14, 40, 36), (3, 33, 47), (48, 37), (64, 64)]


def encoder(dims: int = 3, **changes) -> dict:
    return ENCODER.to_dict() | {"spatial_dims": dims} | changes


def network(
    dims: int = 3, channels: int = 1, deep_supervision: bool = True, **arguments
) -> SwinUNETR:
    torch.manual_seed(0)
    return SwinUNETR(
        channels, 3, deep_supervision, **{"encoder": encoder(dims), "decoder": "light"} | arguments
    )


DATASET_LIGHT = {"name": "light", "norm": "dataset"}  # as new plans have it
KINDS = [*DECODERS, DATASET_LIGHT]


@pytest.mark.parametrize("decoder", KINDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_output_has_the_size_of_the_input_and_every_parameter_a_gradient(decoder, size):
    net = network(len(size), channels=2, decoder=decoder)
    outputs = net(torch.randn(2, 2, *size))
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *wanted) for wanted in output_sizes(size)]
    assert tuple(outputs[0].shape[2:]) == size
    sum(o.square().mean() for o in outputs).backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("decoder", KINDS, ids=str)
def test_without_deep_supervision_no_parameter_waits_for_a_gradient(decoder):
    net = network(2, deep_supervision=False, decoder=decoder)
    net(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_light_decoder_sees_where_a_map_differs_and_no_common_part_or_scale():
    net = network(2)
    image, sizes = torch.randn(1, 1, 64, 64), (32, 16, 8, 4, 2)
    maps = [
        torch.randn(1, c, n, n, dtype=torch.float64)
        for c, n in zip(net.encoder.channels, sizes, strict=True)
    ]
    moved = [each * 50 + torch.randn(1, each.shape[1], 1, 1, dtype=torch.float64) for each in maps]
    decoder = net.decoder.double()
    for one, other in zip(
        decoder(image.double(), maps), decoder(image.double(), moved), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert moved[0].std() > 10  # what was passed is left as it was


@pytest.mark.parametrize("decoder", [DATASET_LIGHT, "nnunet"], ids=str)
def test_maps_are_standardised_by_the_dataset_and_what_a_patch_has_of_its_own_stays(decoder):
    net = network(2, decoder=decoder)
    patches = [torch.randn(2, 1, 64, 64) + shift for shift in (-3.0, 0.0, 5.0)]
    moments.calibrate_norms(net, patches)
    encoded = [net.eval().encode(patch)[1] for patch in patches]
    for norm, *maps in zip(net.decoder.norms, *encoded, strict=True):
        done = norm(torch.cat(maps)).movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(done.mean(0), torch.zeros(done.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            done.std(0, correction=0), torch.ones(done.shape[1]), atol=1e-3, rtol=0
        )
    assert {name for name in net.state_dict() if name.endswith((".mean", ".std"))} == {
        f"decoder.norms.{level}.{kind}" for level in range(5) for kind in ("mean", "std")
    }
    image, maps = net.encode(patches[0])
    moved = [each + 1 for each in maps]
    assert not torch.allclose(net.decoder(image, maps)[0], net.decoder(image, moved)[0], atol=1e-3)


@pytest.mark.parametrize("decoder", KINDS, ids=str)
@pytest.mark.parametrize("regions", [False, True])
def test_at_first_all_is_background_as_far_as_the_bias_says(decoder, regions):
    net = network(2, decoder=decoder)
    moments.start_heads(net, regions)
    for head in net.decoder.heads.seg_layers:
        expected = head.bias.sigmoid() if regions else head.bias.softmax(0)
        wanted = [0.01] * 3 if regions else [0.99, 0.005, 0.005]
        torch.testing.assert_close(expected, torch.tensor(wanted), atol=1e-6, rtol=1e-5)


# Of the networks that older plans name: the sum of each output's logits, and of their squares.
OLD = {
    "swinunetr": [
        [21391.0566, 30542.1289],
        [2183.1465, 3040.3701],
        [-510.5, 723.5402],
        [-5.056, 58.4301],
    ],
    "light": [
        [14284.5254, 11353.4131],
        [-271.5786, 1660.7327],
        [-136.005, 143.7811],
        [-13.9644, 31.6682],
    ],
}


@pytest.mark.parametrize(("decoder", "tensors"), [("swinunetr", 111), ("light", 95)])
def test_networks_of_older_plans_are_what_they_were(decoder, tensors):
    net = network(decoder=decoder).eval()
    assert len(net.state_dict()) == tensors
    with torch.no_grad():
        outputs = net(torch.linspace(-2, 2, 14 * 40 * 36).sin().reshape(1, 1, 14, 40, 36))
    found = [[float(o.sum()), float(o.square().sum())] for o in outputs]
    for one, other in zip(found, OLD[decoder], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("decoder", KINDS, ids=str)
def test_one_state_dict_with_and_without_deep_supervision(decoder):
    many, single = network(decoder=decoder), network(decoder=decoder, deep_supervision=False)
    single.load_state_dict(many.state_dict())
    many.eval(), single.eval()
    image = torch.randn(1, 1, 16, 24, 20)
    torch.testing.assert_close(single(image), many(image)[0])
    many.decoder.deep_supervision = False  # as nnU-Net's trainer switches it
    torch.testing.assert_close(single(image), many(image))
    assert {name.split(".")[0] for name in many.state_dict()} == {"encoder", "decoder"}


def monai_name(name: str) -> str | None:
    """The name in our network of a tensor in MONAI's."""
    if "relative_position_index" in name:
        return None
    if name.startswith("swinViT."):
        return name.replace("swinViT.", "encoder.")
    for old, new in (
        ("out.conv.conv.", "heads.seg_layers.0."),
        (".layer.", "."),
        (".conv.weight", ".weight"),
        ("conv_block", "block"),
        ("transp_conv", "upsample"),
        ("encoder10.", "bottom."),
        *((f"encoder{i}.", f"skips.{i - 1}.") for i in (1, 2, 3, 4)),
        *((f"decoder{i}.", f"ups.{5 - i}.") for i in (1, 2, 3, 4, 5)),
    ):
        name = name.replace(old, new)
    return f"decoder.{name}"


def as_ours(
    named: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """MONAI's tensors under our names; its convolutions of one voxel are our matrices."""
    renamed = {monai_name(name): tensor for name, tensor in named.items() if monai_name(name)}
    return {name: tensor.reshape(wanted[name].shape) for name, tensor in renamed.items()}


@pytest.mark.parametrize("size", [(64, 32, 32), (64, 32)])
def test_the_faithful_network_is_monais(size):
    from monai.networks.nets import SwinUNETR as Theirs

    config = SwinConfig(
        len(size),
        embed_dim=12,
        depths=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        taps="merge",
        windows="monai",
    )
    torch.manual_seed(0)
    theirs = Theirs(
        1,
        3,
        feature_size=12,
        depths=config.depths,
        num_heads=config.heads,
        window_size=4,
        patch_norm=True,
        spatial_dims=len(size),
    ).double()
    ours = network(
        len(size), deep_supervision=False, encoder=config.to_dict(), decoder="swinunetr"
    ).double()
    loaded = ours.load_state_dict(as_ours(theirs.state_dict(), ours.state_dict()), strict=False)
    assert loaded.unexpected_keys == []
    assert all("intensity" in key or "seg_layers" in key for key in loaded.missing_keys)
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in theirs.parameters())

    image = torch.randn(2, 1, *size, dtype=torch.float64)
    mine, wanted = ours(image), theirs(image)
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(wanted)
    mine.backward(direction), wanted.backward(direction)
    gradients = as_ours(
        {n: p.grad for n, p in theirs.named_parameters()}, dict(ours.named_parameters())
    )
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, gradients[name], rtol=1e-6, atol=1e-9, msg=name
            )


@pytest.mark.parametrize("dims", [2, 3])
def test_composing_upsampling_and_convolution_is_the_same_function(dims):
    torch.manual_seed(0)
    block = UpBlock((2,) * dims, 6, 4).double()
    x, skip = (
        torch.randn(2, 6, *(3, 4, 2)[:dims]).double(),
        torch.randn(2, 4, *(6, 8, 4)[:dims]).double(),
    )
    weights = [part.weight for part in (block.upsample, block.block.conv1, block.block.conv3)]
    joined = composed.join(x, skip, block.step, *weights)
    for one, other in zip(joined, block._one_by_one(x, skip), strict=True):
        torch.testing.assert_close(one, other)
    # an odd size: the upsampled map has to be cut first
    assert not composed.is_supported(x, skip[:, :, :-1], block.step)


@pytest.mark.parametrize("size", [(4, 6, 5), (7, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("function", [formula, instance_norm])  # if compiled, and if not
def test_instance_norm_keeps_channels_last(size, dtype, function):
    torch.manual_seed(0)
    last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    x = (
        (torch.randn(2, 3, *size, dtype=dtype) * 3 + 7)
        .contiguous(memory_format=last)
        .requires_grad_()
    )
    y = function(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=last)
    exact = x.detach().double().requires_grad_()
    wanted = F.instance_norm(exact)
    torch.testing.assert_close(y, wanted.to(dtype))
    weight = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, weight)
    assert got.is_contiguous(memory_format=last)
    torch.testing.assert_close(
        got, torch.autograd.grad(wanted, exact, weight.double())[0].to(dtype), rtol=2e-2, atol=1e-2
    )


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (3, 6, 5), (40, 64, 50)])  # the last one in several parts
def test_norm_act_is_instance_norm_and_leaky_relu(act, size):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size)
    mine, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = norm_act(mine * 3 + 7, act)
    wanted = F.instance_norm(plain * 3 + 7)
    wanted = F.leaky_relu(wanted, SLOPE) if act else wanted
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(x)
    y.backward(direction), wanted.backward(direction)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decoder", KINDS, ids=str)
def test_in_single_precision_the_network_is_that_of_double_precision(decoder):
    """Only the former works in place; a gradient lost on the way would show here."""
    net = network(2, decoder=decoder)
    image = torch.randn(2, 1, 48, 40)
    gradients = []
    for copy in (net, deepcopy(net).double()):
        outputs = copy(image.to(next(copy.parameters()).dtype))
        sum(
            weight * o[:, 0].sigmoid().mean() for weight, o in enumerate(outputs, start=1)
        ).backward()
        gradients.append({name: p.grad.double() for name, p in copy.named_parameters()})
    single, double = gradients
    # A voxel at LeakyReLU's kink may fall on the other side, which changes a gradient by parts in a
    # thousand.
    off = {
        name: float((single[name] - double[name]).norm() / double[name].norm()) for name in double
    }
    assert max(off.values()) < 0.03, max(off, key=off.get)


def test_half_precision_keeps_channels_last_through_norm_and_leaky_relu():
    """As on a GPU: nothing turns the map around, nothing is overwritten."""
    x = torch.randn(2, 3, 4, 6, 5).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    before = x.clone()
    for y in (norm_act(x), norm_of(x)):
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(x, before)
    wanted = F.leaky_relu(F.instance_norm(before.float()), SLOPE)
    torch.testing.assert_close(norm_act(x).float(), wanted, rtol=2e-2, atol=2e-2)


def test_what_others_read_too_is_not_overwritten():
    x = torch.randn(2, 3, 4, 6, 5)
    before = x.clone()
    torch.testing.assert_close(norm_of(x), F.instance_norm(before), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


def test_a_single_voxel_is_not_normalised():
    x = torch.tensor([[[[[2.0]]], [[[-2.0]]]]])
    torch.testing.assert_close(norm_act(x.clone()).flatten(), torch.tensor([2.0, -2.0 * SLOPE]))
    torch.testing.assert_close(norm_act(x.clone(), act=False), x)


def ct_normalised(hu: np.ndarray, properties: dict) -> torch.Tensor:
    """Through nnU-Net's own class."""
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    normalised = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(
        hu.copy()
    )
    return torch.from_numpy(normalised)


def test_the_encoder_sees_the_hu_scale_of_the_pretraining():
    properties = {"mean": 87.3, "std": 143.9, "percentile_00_5": -950.0, "percentile_99_5": 1300.0}
    hu = np.linspace(-1024, 3000, 4 * 16**3, dtype=np.float32).reshape(4, 1, 16, 16, 16)
    other = np.random.default_rng(0).normal(size=hu.shape).astype(np.float32)
    image = torch.cat([ct_normalised(hu, properties), torch.from_numpy(other)], dim=1)
    entries = intensity_map(
        ["CTNormalization", "ZScoreNormalization"], {"0": properties, "1": {}}, HU
    )
    mapped = Intensity(2, **entries)(image)
    np.testing.assert_allclose(mapped[:, 0], HU.normalise(hu[:, 0].clip(-950, 1300)), atol=3e-6)
    np.testing.assert_array_equal(mapped[:, 1], other[:, 0])


def test_intensities_travel_in_the_state_dict():
    entries = intensity_map(["CTNormalization"], {"0": {"mean": 10.0, "std": 20.0}}, HU)
    trained, predicting = network(2, intensity=entries), network(2)
    predicting.load_state_dict(trained.state_dict())
    assert float(predicting.encoder.intensity.scale) == pytest.approx(20 / HU.std)
    assert float(predicting.encoder.intensity.high) == pytest.approx((HU.high - HU.mean) / HU.std)


def test_the_decoders_image_skip_sees_nnunets_values_where_the_plans_say_so():
    entries = intensity_map(["CTNormalization"], {"0": {"mean": 10.0, "std": 20.0}}, HU)
    image = 100 * torch.randn(1, 1, 32, 32)
    for options, skip in (
        ({"image_skip": "raw"}, lambda _: image),
        ({}, lambda net: net.encoder.intensity(image)),
    ):
        net = network(2, intensity=entries, **options)
        caught = []
        net.decoder.register_forward_pre_hook(
            lambda _, inputs, caught=caught: caught.append(inputs[0])
        )
        net.encoder.patch_embed.register_forward_pre_hook(
            lambda _, inputs, caught=caught: caught.append(inputs[0])
        )
        net(image)
        assert torch.equal(caught[0], net.encoder.intensity(image))
        assert torch.equal(caught[1], skip(net))
    with pytest.raises(ValueError, match="image_skip must be one of mapped, raw, got 'none'"):
        network(2, image_skip="none")


def test_channels_without_numbers_pass_as_they_are():
    """As the one-hot labels of a cascade's previous stage, which have no normalisation scheme."""
    image = 100 * torch.randn(1, 3, 8, 8)
    mapped = Intensity(3, scale=[2.0], shift=[1.0], low=[-1.0], high=[1.0])(image)
    torch.testing.assert_close(mapped[:, 1:], image[:, 1:])
    torch.testing.assert_close(mapped[:, 0], (2 * image[:, 0] + 1).clamp(-1, 1))
    with pytest.raises(ValueError, match="one entry per channel, 1 in all"):
        Intensity(1, scale=[1.0, 1.0])


def test_no_intensity_map_where_there_is_nothing_to_map():
    assert intensity_map(["ZScoreNormalization"], {"0": {}}, HU) is None
    assert intensity_map(["CTNormalization"], {"0": {"mean": 0.0, "std": 1.0}}, None) is None


def test_an_encoder_alone_loads_strictly_and_leaves_the_intensities():
    net = network(2, intensity={"scale": [3.0]})
    net.encoder.load_state_dict(Swin(SwinConfig.from_dict(encoder(2))).state_dict())
    assert float(net.encoder.intensity.scale) == 3.0


def test_what_upstreams_loader_of_pretrained_weights_looks_for():
    header = {
        "method": "smit",
        "plan": {"hu": HU.to_dict(), "spacing": [2.0, 2.0, 2.0]},
        "crop": [32, 32, 32],
    }
    plan = checkpoint.pack(Swin(ENCODER), header, [])["nnssl_adaptation_plan"]
    entry = plan["architecture_plans"]
    assert entry["arch_class_name"] == NETWORK_CLASS
    net = locate(NETWORK_CLASS)(
        input_channels=1, num_classes=2, deep_supervision=False, **entry["arch_kwargs"]
    )
    assert isinstance(net, SwinUNETR)
    assert net.encoder.config == ENCODER
    for key in ("key_to_encoder", "key_to_stem", "key_to_lpe"):
        assert getattr(net, key) == plan[key]
    assert list(net.keys_to_in_proj) == plan["keys_to_in_proj"]
    for key in (net.key_to_encoder, net.key_to_stem, *net.keys_to_in_proj):
        net.get_submodule(key)


@pytest.mark.parametrize("decoder", KINDS, ids=str)
def test_only_the_heads_are_left_out_by_nnunets_pretrained_weights(decoder):
    names = {name for name in network(decoder=decoder).state_dict() if ".seg_layers." in name}
    assert names == {
        f"decoder.heads.seg_layers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }


def test_unknown_decoders_and_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown decoder 'cnn'; known: swinunetr, light, nnunet"):
        network(decoder="cnn")
    with pytest.raises(ValueError, match="does not take these options"):
        network(decoder={"name": "light", "width": 3})
    with pytest.raises(
        ValueError, match="norm of the light decoder is dataset or space, got 'patch'"
    ):
        network(decoder={"name": "light", "norm": "patch"})
    with pytest.raises(ValueError, match="takes 5 widths, at strides 1 to 16, got"):
        network(decoder={"name": "light", "widths": [16, 8, 8]})
    with pytest.raises(ValueError, match="unknown decoder None"):
        network(decoder={"norm": "dataset"})
    with pytest.raises(ValueError, match="takes 6 widths"):
        network(decoder={"name": "nnunet", "widths": [4, 4]})
    assert network(2, decoder={"name": "light", "widths": [4, 4, 8, 8, 8]})(
        torch.randn(1, 1, 32, 32)
    )


def test_axes_turn_the_image_back_to_file_order():
    """nnU-Net's transpose_forward before the network, and `axes` in it, are together nothing."""
    torch.manual_seed(0)
    plain = SwinUNETR(1, 2, deep_supervision=True, encoder=encoder(), decoder="light").eval()
    permuted = SwinUNETR(
        1, 2, deep_supervision=True, encoder=encoder(), decoder="light", axes=[1, 2, 0]
    ).eval()
    permuted.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 20, 24, 33)
    # numpy's transpose([0, 2, 3, 1]), as nnU-Net's preprocessing does it
    arrives = image.permute(0, 1, 3, 4, 2)
    for expected, got in zip(plain(image), permuted(arrives), strict=True):
        torch.testing.assert_close(got, expected.permute(0, 1, 3, 4, 2))
    with pytest.raises(ValueError, match="axes must be an order"):
        SwinUNETR(1, 2, encoder=encoder(), axes=[0, 0, 1])


@pytest.mark.parametrize("outputs", [3, 8, 65])
def test_outputs_that_only_fill_up_a_row_change_nothing(outputs: int):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 16)
    weight = torch.randn(outputs, 16, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True)
    to_out = torch.randn(2, 5, 4, outputs)
    found = []
    for product in (F.linear, aligned_linear):
        out = product(x, weight, bias)
        found.append([out, *torch.autograd.grad(out, (weight, bias), to_out)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(aligned_linear(x, weight), F.linear(x, weight))
