"""Third-party weights: our encoder computes what the networks did that they were trained in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic_foreign as foreign
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.convert.conversion import Converted, ConvertRequest, encoder_from
from nnssl.convert.opening import opened, tensors_in
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin


def reverse_axes(x: Tensor) -> Tensor:
    """[B C z y x] to [B C x y z], and back."""
    return x.permute(0, 1, *reversed(range(2, x.ndim)))


@pytest.fixture
def encoder_of(tmp_path):
    """Save a file's content and convert what is read; in double precision, so that rounding is no
    excuse.
    """

    def converted(content: dict, **requested: object) -> Converted:
        path = tmp_path / "foreign.pt"
        torch.save(content, path)
        tensors = tensors_in(opened(path), path)
        done = encoder_from(tensors, ConvertRequest(path, tmp_path / "ours.pth", **requested))
        # Conversion is in single precision, as files are: the weights made in double are rounded to
        # it first.
        done.encoder.double().eval()
        return done

    return converted


def image(*shape: int, channels: int = 1) -> Tensor:
    return torch.randn(
        1, channels, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def single(network: nn.Module) -> nn.Module:
    """With weights that single precision holds exactly."""
    return network.float().double()


def assert_same_maps(ours: Swin, theirs: list[Tensor], x: Tensor) -> None:
    for mine, other in zip(ours(x), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


# --- SMIT ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 64, 32)])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_smit_is_computed_exactly(encoder_of, qkv_bias, shape):
    """Its reverse and shift of windows, also of one that fills the grid, its merging, its norms,
    (x, y, z) arrays.
    """
    theirs = single(foreign.smit(qkv_bias))
    done = encoder_of(foreign.smit_10k(theirs) if qkv_bias else theirs.published())
    assert done.source.name == ("smit_10k" if qkv_bias else "smit_miccai22")
    x = image(*shape)
    last, stages = theirs(reverse_axes(x))
    expected = [
        reverse_axes(m)
        for m in (*stages, F.layer_norm(last.movedim(1, -1), last.shape[1:2]).movedim(-1, 1))
    ]
    assert_same_maps(done.encoder, expected, x)


def test_smit_has_the_same_gradients(encoder_of):
    theirs = single(foreign.smit())
    ours = encoder_of(theirs.published()).encoder
    ours_in, theirs_in = image(32, 32, 32).requires_grad_(), image(32, 32, 32).requires_grad_()
    torch.stack([m.square().mean() * m[..., 0].sum() for m in ours(ours_in)[:4]]).sum().backward()
    stages = [reverse_axes(m) for m in theirs(reverse_axes(theirs_in))[1]]
    torch.stack([m.square().mean() * m[..., 0].sum() for m in stages]).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-7, atol=1e-7)


def test_smits_norms_are_left_out_where_pretraining_did_not_train_them(encoder_of):
    theirs = foreign.smit()
    for norm in theirs.norms:
        norm.reset_parameters()
    done = encoder_of(single(theirs).published())
    assert not done.encoder.config.out_norms
    assert any("untrained and without effect" in words for words in done.adapted)
    x = image(32, 32, 32)
    for mine, other in zip(done.encoder(x), theirs(reverse_axes(x))[1], strict=False):
        torch.testing.assert_close(mine, reverse_axes(other), rtol=1e-8, atol=1e-8)


def test_what_is_peculiar_to_smit_matters(encoder_of):
    """With any one of its peculiarities left out the maps are others: the tests above do test
    them.
    """
    done = encoder_of(single(foreign.smit()).published())
    x, config = image(32, 32, 32), done.encoder.config
    for change in ({"windows": "exact"}, {"axes": "zyx"}):
        other = Swin(replace(config, **change)).double().eval()
        other.load_state_dict(done.encoder.state_dict())
        assert (other(x)[3] - done.encoder(x)[3]).abs().mean() > 0.1, change


def test_combinations_that_no_weights_have_are_refused():
    with pytest.raises(ValueError, match='windows "smit" exist in 3D only'):
        SwinConfig(spatial_dims=2, windows="smit")
    with pytest.raises(ValueError, match='out_norms need taps "stage"'):
        SwinConfig(out_norms=True, taps="merge")


# --- MONAI -----------------------------------------------------------------------------

FILES = {
    "monai_swinvit": foreign.model_swinvit,
    "monai_dae": foreign.ssl_pretrained,
    "voco": foreign.voco,
    "suprem": foreign.suprem,
    "monai": foreign.retrained,
}


@pytest.mark.parametrize("source", FILES)
def test_files_of_the_monai_family_are_computed_exactly(encoder_of, source):
    """Merging before 1.5, clipped windows (16 and less tokens in windows of 7), padding, (x, y, z)
    arrays, v2.
    """
    theirs = single(foreign.monai(use_v2=source == "voco"))
    requested = {"merging": "legacy"} if source == "monai" else {}
    done = encoder_of(FILES[source](theirs), **requested)
    assert done.source.name == source
    assert (done.encoder.config.windows, done.encoder.config.merging) == ("monai", "legacy")
    x = image(24, 32, 40)
    assert_same_maps(done.encoder, [reverse_axes(m) for m in theirs(reverse_axes(x))], x)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize(
    ("dims", "shape", "options"),
    [
        (3, (48, 20, 33), {"window_size": (4, 4, 4)}),
        (3, (18, 32, 32), {"patch_norm": True, "use_v2": True}),
        (3, (32, 32, 32), {"in_chans": 2}),
        (2, (64, 40), {}),
        (2, (33, 90), {"window_size": (4, 4), "use_v2": True}),
    ],
)
@pytest.mark.parametrize("merging", ["all", "legacy"])
def test_the_axes_are_turned_exactly(encoder_of, merging, dims, shape, options, axes):
    """E'(x^T) == E(x)^T, with merging of either kind; and E' == E for weights of (z, y, x)
    arrays.
    """
    theirs = single(foreign.monai(dims, legacy=merging == "legacy" and dims == 3, **options))
    named = {"source": "monai"} if options.get("use_v2") else {}
    ours = encoder_of(foreign.retrained(theirs), merging=merging, axes=axes, **named).encoder
    x = image(*shape, channels=options.get("in_chans", 1))
    turn = reverse_axes if axes == "xyz" else (lambda m: m)
    assert_same_maps(ours, [turn(m) for m in theirs(turn(x))], x)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize(("dims", "shape"), [(3, (32, 33, 48)), (2, (33, 64))])
def test_mergingv2_is_computed_exactly(encoder_of, dims, shape, axes):
    """It joins the corners of a cell in another order, which no name shows."""
    theirs = single(foreign.monai(dims, downsample="mergingv2"))
    content, x = foreign.retrained(theirs), image(*shape)
    ours = encoder_of(content, merging="v2", axes=axes).encoder
    assert ours.config.merging == "all"
    turn = reverse_axes if axes == "xyz" else (lambda m: m)
    assert_same_maps(ours, [turn(m) for m in theirs(turn(x))], x)
    other = encoder_of(content, merging="all", axes=axes).encoder
    assert ((other(x)[4] - ours(x)[4]).abs().mean() > 0.1) == (dims == 3)


def test_what_is_peculiar_to_old_monai_matters():
    theirs, x = foreign.monai(legacy=True), image(32, 32, 32)
    new = foreign.monai(legacy=False)
    assert (theirs(x)[4] - new(x)[4]).abs().mean() > 0.1
    assert (theirs(reverse_axes(x))[4] - reverse_axes(theirs(x)[4])).abs().mean() > 0.1


# --- 2D, ImageNet ----------------------------------------------------------------------


def timm_maps(network: nn.Module, x: Tensor) -> list[Tensor]:
    maps, x = [], network.patch_embed(x)
    for stage in network.layers:
        x = stage(x)
        maps.append(x)
    return maps


def torchvision_maps(network: nn.Module, x: Tensor) -> list[Tensor]:
    maps = []
    for number, part in enumerate(network.features):
        x = part(x)
        if number % 2:
            maps.append(x)
    return maps


IMAGENET = {
    "timm": (foreign.timm_swin, timm_maps, lambda network: network.state_dict()),
    "torchvision": (
        foreign.torchvision_swin,
        torchvision_maps,
        lambda network: network.state_dict(),
    ),
    "swin": (foreign.timm_swin, timm_maps, foreign.authors_swin),
}


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("layout", IMAGENET)
def test_imagenet_swins_are_computed_exactly_on_doubled_pixels(encoder_of, layout, rgb):
    """Our maps of an image are theirs of the image enlarged twice: patches of 2 in the place of
    4.
    """
    network, maps, saved = IMAGENET[layout]
    theirs = single(network())
    done = encoder_of(saved(theirs), rgb=rgb)
    assert (done.source.name, done.found.layout.name) == ("imagenet", layout)
    x = image(64, 64, channels=3 if rgb else 1)
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest").expand(-1, 3, -1, -1)
    for mine, other in zip(done.encoder(x)[:4], maps(theirs, enlarged), strict=True):
        expected = F.layer_norm(other, other.shape[-1:]).movedim(-1, 1)
        # sums of weights are rounded to single
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    assert done.loaded == len(done.encoder.state_dict()) - 3
    assert any("last merge" in words for words in done.adapted)


def test_the_new_merge_is_the_same_every_time(encoder_of):
    content = single(foreign.timm_swin()).state_dict()
    before = torch.random.get_rng_state()
    first, second = (encoder_of(content).encoder.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("depth", [32, 48])
def test_inflated_weights_see_in_each_slice_what_they_saw_in_2d(encoder_of, depth):
    content = single(foreign.timm_swin()).state_dict()
    flat, deep = encoder_of(content).encoder, encoder_of(content, dims=3).encoder
    x = image(64, 32)
    volume = x[:, :, None].expand(-1, -1, depth, -1, -1)
    for number, (slices, maps) in enumerate(zip(flat(x), deep(volume), strict=True)):
        if number < 4:  # the last merge is new in both
            torch.testing.assert_close(
                maps, slices[:, :, None].expand_as(maps), rtol=1e-8, atol=1e-8
            )


def test_an_inflated_last_merge_gives_what_it_gave_in_2d(encoder_of):
    theirs = single(foreign.monai(2, window_size=(4, 4)))
    requested = {"merging": "all", "axes": "zyx"}
    flat = encoder_of(foreign.retrained(theirs), **requested).encoder
    deep = encoder_of(foreign.retrained(theirs), **requested, dims=3).encoder
    x = image(64, 64)  # grids of 32, 16, 8, 4: no window is clipped or padded
    for slices, maps in zip(flat(x), deep(x[:, :, None].expand(-1, -1, 32, -1, -1)), strict=True):
        torch.testing.assert_close(maps, slices[:, :, None].expand_as(maps), rtol=1e-8, atol=1e-8)
