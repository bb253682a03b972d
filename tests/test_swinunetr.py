"""Swin UNETR's pretext: what is cut out and by what it is replaced, and its three terms."""

from __future__ import annotations

import micro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnssl.methods.swinunetr import ConvDecoder, SwinUNETRPretext
from nnssl.train.batches import generator_for
from nnssl.views import cutout
from nnssl.views.cutout import covered, draw_cutout
from nnssl.views.spatial import rotate, rotations

pytestmark = pytest.mark.usefixtures("one_thread")
CROP = (32, 32, 32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def method():
    return micro.method("swinunetr", window_jitter=0.0)


# -- cut-out ---------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_boxes_keep_to_the_share_and_to_the_edge(dims):
    fractions = []
    for seed in range(200):
        boxes = draw_cutout(0.3, 0.25, dims, generator(seed))
        start, side = boxes.unbind(dim=2)
        nonempty = side[:, 0] > 0
        fraction = 0.3 * float(torch.rand((), generator=generator(seed)))
        fractions.append(float(side.prod(dim=1).sum()))
        assert fraction - 0.25**dims < fractions[-1] <= fraction + 1e-6, (
            "there is no room for one more"
        )
        assert bool((side[nonempty] >= 0.125).all())
        assert bool((side[nonempty] <= 0.25).all())
        assert float(start.min()) >= 0
        assert float((start + side).max()) <= 1
        assert bool((nonempty[1:] <= nonempty[:-1]).all()), "empty ones come last"
    assert min(fractions) < 0.05
    assert max(fractions) > 0.25


@pytest.mark.parametrize("size", [(20, 17, 24), (30, 18)])
@pytest.mark.parametrize("at_once", [3, 256])
def test_covered_voxels_are_those_of_a_loop(size, at_once, monkeypatch):
    monkeypatch.setattr(cutout, "AT_ONCE", at_once)
    boxes = torch.stack([draw_cutout(0.3, 0.25, len(size), generator(seed)) for seed in range(3)])
    got = covered(boxes, size)
    expected = torch.zeros(3, *size, dtype=torch.bool)
    positions = torch.cartesian_prod(*[torch.arange(s) for s in size])
    middles = (positions + 0.5) / torch.tensor(size)
    for image, some in zip(expected, boxes, strict=True):
        for start, side in some.transpose(1, 2):
            inside = ((middles >= start) & (middles < start + side)).all(dim=1)
            image[tuple(positions[inside].T)] = True
    assert torch.equal(got, expected)
    assert 0.05 < float(got.float().mean()) < 0.3
    assert torch.equal(got[1:2], covered(boxes[1:2], size))


def test_no_box_covers_nothing():
    assert not covered(torch.zeros(2, 5, 3, 2), (4, 5, 6)).any()
    assert covered(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), (4, 5)).all()


# -- views -----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_views_are_turned_in_plane_and_damaged_in_part(dims):
    method = micro.method("swinunetr", spatial_dims=dims, window_jitter=0.0)
    size = (24, 32, 32)[3 - dims :]
    regions = torch.stack([micro.SyntheticCrops(size)[index]["crop"] for index in range(3)])
    views = method.views(regions, [generator_for(0, index) for index in range(3)])
    assert {name: tuple(value.shape) for name, value in views.items()} == {
        "image": (2, 3, 1, *size),
        "noisy": (2, 3, 1, *size),
        "swapped": (2, 3, 1, *size),
        "turn": (2, 3),
    }
    damaged = views["noisy"] != views["image"]
    for name, part in (("noise", damaged), ("swap", views["swapped"])):
        fraction = part.flatten(2).float().mean(dim=2)
        assert 0.03 < float(fraction.mean()) < 0.27, name
        assert float(fraction.max()) < 0.31, name
    for view in range(2):
        for scan in range(3):
            k = int(views["turn"][view, scan])
            assert torch.equal(views["image"][view, scan], regions[scan].rot90(k, (-2, -1)))
    assert not torch.equal(views["noisy"][0], views["noisy"][1])


def test_the_noise_has_the_bodys_sd(method):
    views = micro.views(method, batch=4, crop=CROP)
    noise = views["noisy"][views["noisy"] != views["image"]]
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def test_swapped_blocks_come_from_the_scan_before_and_never_from_the_same_scan(method):
    views = micro.views(method, batch=4, crop=CROP)
    image, swapped = views["image"], views["swapped"]
    views["scan"] = torch.tensor([7, 3, 3, 5])
    inputs = method._student_input(views)
    for scan, (before, from_another) in enumerate([(3, True), (0, True), (1, False), (2, True)]):
        source = image[:, before] if from_another else views["noisy"][:, scan]
        assert torch.equal(
            inputs[:, scan], torch.where(swapped[:, scan], source, views["noisy"][:, scan])
        )


def test_a_batch_of_one_scan_swaps_nothing(method):
    views = micro.views(method, batch=1, crop=CROP)
    assert torch.equal(method._student_input(views), views["noisy"])


def test_a_crop_whose_slices_are_not_square_is_refused_with_one_that_works():
    assert SwinUNETRPretext.region((48, 64, 64)) == (48, 64, 64)
    assert SwinUNETRPretext.region((64, 64)) == (64, 64)
    with pytest.raises(ValueError, match=r"equal y and x, got 96x64x96: type --crop 96 64 64$"):
        SwinUNETRPretext.region((96, 64, 96))


# -- the decoder -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "grid", "size"), [(3, (2, 1, 2), (64, 32, 50)), (2, (2, 2), (48, 64))]
)
def test_projecting_before_the_last_doubling_is_projecting_after_it(dims, grid, size):
    """The authors' order, on the same weights."""
    torch.manual_seed(0)
    decoder, tokens = ConvDecoder(32, dims), torch.randn(2, 32, *grid)
    theirs = nn.Sequential(
        *(
            m
            for layer in decoder.layers
            for m in (layer, nn.Upsample(scale_factor=2, mode=decoder.mode))
        )
    )
    expected = decoder.to_voxels(theirs(tokens))[(..., *(slice(s) for s in size))]
    assert expected.shape == (2, 1, *size)
    torch.testing.assert_close(decoder(tokens, size), expected, rtol=1e-4, atol=1e-5)


def test_the_decoder_hears_a_single_token():
    """Instance norm, as in the authors' code, would say the same of every crop of up to 32
    voxels.
    """
    torch.manual_seed(0)
    decoder, tokens = ConvDecoder(32, 3), torch.randn(2, 32, 1, 1, 1)
    first, second = decoder(tokens, (16, 16, 16))
    assert not torch.allclose(first, second)


# -- the loss --------------------------------------------------------------------------


def test_the_terms_by_hand(method):
    method = micro.method("swinunetr", w_rotation=0.5, w_contrast=2.0, w_voxels=0.25)
    views = micro.views(method, batch=3)
    out = method(views)
    image, turn = views["image"].flatten(0, 1), views["turn"].flatten()
    last = method.student(method._student_input(views).flatten(0, 1))[-1]
    pooled = last.flatten(2).mean(dim=2)
    logits = method.rotation_head(pooled)
    rotation = sum(-F.log_softmax(row, dim=0)[k] for row, k in zip(logits, turn, strict=True)) / 6
    torch.testing.assert_close(out.losses["rotation"], rotation)
    voxels = (method.decoder(last, image.shape[2:]) - image).abs().mean()
    torch.testing.assert_close(out.losses["voxels"], voxels)
    expected = 0.5 * rotation + 2.0 * out.losses["contrast"] + 0.25 * voxels
    torch.testing.assert_close(out.losses["total"], expected)
    assert torch.equal(out.monitored["embedding"], pooled.detach())


@pytest.mark.parametrize("batch", [2, 4])
def test_the_contrast_is_monais(method, batch):
    """MONAI's ContrastiveLoss (Apache-2.0), as Swin UNETR's pretext uses it: scans are all
    different.
    """
    from monai.losses import ContrastiveLoss

    views = micro.views(method, batch=batch)
    last = method.student(method._student_input(views).flatten(0, 1))[-1]
    first, second = method.contrast_head(last.flatten(2).mean(dim=2)).chunk(2)
    expected = ContrastiveLoss(temperature=0.5)(first, second)
    torch.testing.assert_close(method(views).losses["contrast"], expected, rtol=1e-5, atol=1e-6)


def test_token0_reads_tokens_0_and_1():
    method = micro.method("swinunetr", token0=True)
    views = micro.views(method, crop=(64, 16, 16))
    heard = {}
    method.rotation_head.register_forward_pre_hook(
        lambda module, args: heard.update(rotation=args[0])
    )
    method.contrast_head.register_forward_pre_hook(
        lambda module, args: heard.update(contrast=args[0])
    )
    method(views)
    tokens = method.student(method._student_input(views).flatten(0, 1))[-1].flatten(2)
    assert torch.equal(heard["rotation"], tokens[:, :, 0])
    assert torch.equal(heard["contrast"], tokens[:, :, 1])
    with pytest.raises(ValueError, match="token0 needs two tokens, but the crop gives one"):
        method(micro.views(method, crop=CROP))


def test_the_four_turns_are_about_z():
    volume = torch.randn(1, 3, 4, 4, generator=generator())
    for k, rotation in enumerate(rotations(3, 4)):
        assert torch.equal(rotate(volume, rotation), volume.rot90(k, (2, 3)))
