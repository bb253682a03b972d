"""The probe's small decoder: what it learns, what it counts, that it draws nothing from the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.train import few_shot, linear

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def enlarged(grid: torch.Tensor, times: int, dims: int) -> torch.Tensor:
    """Each cell of the last axes repeated along all of them."""
    for axis in range(grid.ndim - dims, grid.ndim):
        grid = grid.repeat_interleave(times, dim=axis)
    return grid


def crops(dims: int, count: int = 4) -> tuple[list, list]:
    """Maps of strides 2 and 4, and labels: 0 where the fine map shows no body; 1 where the signs of
    two channels agree, else 2, so that nothing linear tells one from the other.
    """
    generator = torch.Generator().manual_seed(3)
    maps, labels = [], []
    for _ in range(count):
        coarse = torch.randn(2, *[4] * dims, generator=generator).sign()
        body = torch.zeros(1, *[8] * dims)
        body[(0, *[slice(1, -1)] * dims)] = 1.0
        fine = torch.cat([enlarged(coarse[:1], 2, dims), body])
        label = torch.where(coarse[0] * coarse[1] > 0, 1, 2)
        maps.append([fine.half(), coarse.half()])
        labels.append(enlarged(label, 4, dims) * enlarged(body[0], 2, dims).long())
    return maps, labels


@pytest.mark.parametrize("dims", [2, 3])
def test_it_tells_what_nothing_linear_tells(dims):
    maps, labels = crops(dims)
    decoder = few_shot.fit(maps, labels, 2, 3, CPU, steps=60)
    size = tuple(labels[0].shape)
    with torch.no_grad():
        predicted = [
            decoder.everywhere([level[None].float() for level in one], 2, size)[0].argmax(0)
            for one in maps
        ]
    right = torch.stack(predicted) == torch.stack(labels)
    body = torch.stack(labels) > 0
    assert right.float().mean() > 0.85
    decoded = float(right[body].float().mean())
    assert decoded > 0.7
    features = torch.cat(
        [
            linear.at_points(
                [level[None].float() for level in one], (2, 4), torch.argwhere(label > 0)
            )
            for one, label in zip(maps, labels, strict=True)
        ]
    )
    classes = torch.cat([label[label > 0] for label in labels]) - 1
    target = torch.nn.functional.one_hot(classes, 2)
    fitted, offset = linear.ridge(features, target, torch.ones(len(classes)), 0.03)
    read = float(((features.double() @ fitted + offset).argmax(1) == classes).float().mean())
    assert read < decoded - 0.1


def test_it_draws_nothing_from_the_run_and_says_the_same_again():
    maps, labels = crops(2)
    before = torch.get_rng_state()
    first, second = (few_shot.fit(maps, labels, 2, 3, CPU, steps=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training


def test_it_trains_where_gradients_are_off():
    maps, labels = crops(2)
    with torch.no_grad():
        early, late = (few_shot.fit(maps, labels, 2, 3, CPU, steps=n) for n in (1, 5))
    assert not torch.equal(early.head.weight, late.head.weight)


def test_cells_hold_fractions_of_their_voxels():
    """Against a loop; voxels that count neither way are of no class."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, (4, 6)))
    fractions = few_shot._fractions(labels, 2, 3)
    for y in range(2):
        for x in range(3):
            cell = labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            for k in range(3):
                assert fractions[k, y, x] == (cell == k).float().mean()


def test_maps_are_standardised_over_all_crops():
    maps, labels = crops(2)
    scaled = [[100 * level.float() + 7 for level in one] for one in maps]
    plain, other = (few_shot.fit(m, labels, 2, 3, CPU, steps=3) for m in (maps, scaled))
    with torch.no_grad():
        outputs = [
            decoder([level[None].float() for level in inputs[0]])
            for decoder, inputs in ((plain, maps), (other, scaled))
        ]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(48, 32, 16), (16, 48)])
def test_every_voxel_has_an_answer(size):
    """Also where the coarsest token hangs over the edge."""
    strides = (2, 4, 8, 16, 32)
    maps = [torch.randn(1, 3, *(-(-n // s) for n in size)) for s in strides]
    decoder = few_shot.Decoder([3] * 5, 4, len(size))
    assert decoder.everywhere(maps, 2, size).shape == (1, 4, *size)


def test_each_crop_is_seen_as_often_as_the_others():
    order = few_shot._crop_order(7, 7 * 5, 0)
    assert np.bincount(order).tolist() == [5] * 7
    assert order == few_shot._crop_order(7, 7 * 5, 0)
