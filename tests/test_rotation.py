"""Rotation prediction: what is shown, what counts as right, and that the answer is found."""

from __future__ import annotations

import math

import micro
import pytest
import torch
import torch.nn.functional as F

from nnssl.methods.rotation import Rotation
from nnssl.train.batches import generator_for
from nnssl.views.intensity import blur
from nnssl.views.spatial import rotate, rotate_back, rotations

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("dims", "classes"), [(2, 4), (3, 4), (3, 10), (3, 24)])
def test_turning_back_undoes_a_rotation(dims, classes):
    volume = torch.randn(2, *(3, 4, 5)[:dims], generator=torch.Generator().manual_seed(0))
    for rotation in rotations(dims, classes):
        assert torch.equal(rotate_back(rotate(volume, rotation), rotation), volume)


@pytest.mark.parametrize(
    ("dims", "classes", "expected"), [(3, 0, 24), (2, 0, 4), (3, 10, 10), (3, 4, 4), (2, 4, 4)]
)
def test_classes_default_to_all_rotations(dims, classes, expected):
    method = micro.method("rotation", spatial_dims=dims, classes=classes)
    assert len(method.rotations) == method.head[-1].out_features == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_the_view_is_the_cube_turned_as_the_label_says(dims):
    method = micro.method("rotation", spatial_dims=dims, blur=0.0, window_jitter=0.0)
    crops = micro.SyntheticCrops((16,) * dims)
    regions = torch.stack([crops[index]["crop"] for index in range(40)])
    views = method.views(regions, [generator_for(0, index) for index in range(40)])
    for region, image, turn in zip(regions, views["image"], views["turn"].tolist(), strict=True):
        assert torch.equal(image, rotate(region, method.rotations[turn]))
    assert len(views["turn"].unique()) > len(method.rotations) / 2


def test_every_rotation_is_drawn_equally_often():
    method, region = micro.method("rotation"), torch.zeros(1, 1, 2, 2, 2)
    drawn = [int(method.views(region, [generator_for(1, index)])["turn"]) for index in range(2400)]
    counts = torch.tensor(drawn).bincount(minlength=24)
    assert len(counts) == 24
    assert float((counts - 100).abs().max()) < 5 * math.sqrt(100)


def test_the_blur_says_nothing_of_the_rotation():
    """It is drawn for each axis apart from the turn, and applied before it."""
    method = micro.method("rotation", window_jitter=0.0)
    region = torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    views = method.views(region, [generator_for(0, 5)])
    source = generator_for(0, 5)
    torch.rand(3, generator=source)  # the window
    turn = int(torch.randint(24, (), generator=source))
    expected = rotate(blur(region, torch.rand(1, 3, generator=source))[0], method.rotations[turn])
    assert torch.equal(views["image"][0], expected)


def test_loss_and_accuracy_by_hand():
    method = micro.method("rotation")
    views = micro.views(method, batch=3)
    out = method(views)
    logits = method._classify(views["image"])[1]
    by_hand = [
        -F.log_softmax(row, dim=0)[turn] for row, turn in zip(logits, views["turn"], strict=True)
    ]
    torch.testing.assert_close(out.losses["total"], sum(by_hand) / 3)
    right = [
        int(row.argmax()) == int(turn) for row, turn in zip(logits, views["turn"], strict=True)
    ]
    assert float(out.monitored["accuracy"]) == pytest.approx(sum(right) / 3)


def test_it_begins_at_chance():
    method = micro.method("rotation")
    with torch.no_grad():
        method.head[-1].weight.zero_()
        method.head[-1].bias.zero_()
    assert float(method(micro.views(method)).losses["total"].detach()) == pytest.approx(
        math.log(24)
    )


def test_the_picture_turns_cubes_back():
    method = micro.method("rotation", blur=0.0, window_jitter=0.0).eval()
    samples = [micro.SyntheticCrops(micro.CROP)[index] for index in range(2)]
    with torch.no_grad():
        shown = method.show(micro.prepare_views(method, samples))
    assert torch.equal(shown["as it lay"], torch.stack([sample["crop"] for sample in samples]))


def test_a_crop_of_unequal_sides_is_refused_with_one_that_works():
    assert Rotation.region((64, 64, 64)) == (64, 64, 64)
    with pytest.raises(ValueError, match=r"equal sides, got 96x64x96: type --crop 64 64 64"):
        Rotation.region((96, 64, 96))


def test_a_square_has_no_24_rotations():
    with pytest.raises(ValueError, match="in 2D there are 4 classes of rotation, got 24"):
        micro.method("rotation", spatial_dims=2, classes=24)
