"""CPC: cubes apart from each other, no way from the target into the context, InfoNCE against a
loop.
"""

from __future__ import annotations

import math

import micro
import pytest
import torch
import torch.nn.functional as F

from nnssl.methods.cpc import CPC
from nnssl.train.batches import generator_for
from nnssl.views.intensity import IntensityDraw

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def _plain(monkeypatch):
    """Cubes as they are in the region."""
    monkeypatch.setattr("nnssl.methods.cpc.draw_intensity", lambda *_: IntensityDraw())


def numbered(region: tuple[int, ...]) -> torch.Tensor:
    """A region in which every voxel is its own number, so that a cube tells where it was cut: [1 1
    *region].
    """
    return torch.arange(math.prod(region)).float().view(1, 1, *region)


# -- cubes -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(8, 257))
def test_region_and_crop_know_each_other(size):
    """CPC takes the crop's size from the region's: region - region // 5."""
    (region,) = CPC.region((size,))
    assert region - region // 5 == size


@pytest.mark.parametrize(
    ("crop", "cube"), [((96, 96, 96), 32), ((48, 48, 48), 16), ((64, 64), 20), ((16, 16, 16), 4)]
)
def test_cubes_have_a_third_of_the_crop(crop, cube):
    method = micro.method("cpc", spatial_dims=len(crop))
    cubes = method.views(torch.zeros(1, 1, *CPC.region(crop)), [generator_for(0, 0)])["cubes"]
    assert cubes.shape == (1, 3, 3 ** (len(crop) - 1), 1, *[cube] * len(crop))


def test_the_default_cubes_move_by_4_voxels_either_way():
    """METHODS: cubes of 32 in a crop of 96, jitter +-4: cells of 40."""
    assert CPC.region((96, 96, 96)) == (120, 120, 120)


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("dims", [2, 3])
def test_cubes_are_parts_that_have_no_voxel_in_common_and_stay_in_their_cells(dims):
    method = micro.method("cpc", spatial_dims=dims)
    region = CPC.region((24,) * dims)  # cells of 10, cubes of 8
    seen, moves = numbered(region), set()
    for index in range(30):
        cubes = method.views(seen, [generator_for(0, index)])["cubes"][0].flatten(0, 1)[:, 0]
        numbers = cubes.flatten().long()
        assert len(numbers.unique()) == len(numbers) == 3**dims * 8**dims
        cells = set()
        for cube in cubes:
            corner = torch.unravel_index(cube.flatten()[0].long(), region)
            part = seen[0, 0][tuple(slice(int(c), int(c) + 8) for c in corner)]
            assert torch.equal(cube, part)
            cells.add(tuple(int(c) // 10 for c in corner))
            moves.update(int(c) % 10 for c in corner)
        assert len(cells) == 3**dims
    assert moves == {0, 1, 2}


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("dims", [2, 3])
def test_walks_go_along_every_axis_both_ways(dims):
    method = micro.method("cpc", spatial_dims=dims)
    region, ways = CPC.region((24,) * dims), set()
    for index in range(60):
        cubes = method.views(numbered(region), [generator_for(0, index)])["cubes"][0]
        first = cubes.flatten(3)[:, :, 0, 0].long()  # the corner voxels [steps lines]
        cells = torch.stack(torch.unravel_index(first, region)) // 10  # [dims steps lines]
        moved = cells[:, 1:] - cells[:, :-1]
        assert bool((moved == moved[:, :1, :1]).all()), (
            "every line goes the same way, one cell per step"
        )
        ways.add(tuple(moved[:, 0, 0].tolist()))
    units = [
        tuple(sign if axis == a else 0 for a in range(dims))
        for axis in range(dims)
        for sign in (1, -1)
    ]
    assert ways == set(units)


def test_every_cube_has_intensities_of_its_own():
    method = micro.method("cpc")
    region = torch.linspace(-3, 3, 20).expand(1, 1, 20, 20, 20)
    cubes = method.views(region, [generator_for(0, 1)])["cubes"][0].flatten(0, 1)
    assert len({round(float(cube.mean()), 4) for cube in cubes}) > 15


def test_a_crop_without_room_is_refused():
    with pytest.raises(ValueError, match="4x4x4 is too small for 3 cubes along each axis"):
        micro.views(micro.method("cpc"), crop=(4, 4, 4))


# -- no way from the target into the context -------------------------------------------


@pytest.fixture
def predictions():
    """A method in evaluation mode, and what it predicts and what it is to find, as functions of its
    cubes.
    """
    method = micro.method("cpc", cubes=4, ahead=3).eval()

    def predict(cubes):
        pooled = method.student(cubes.flatten(0, 2))[-1].flatten(2).mean(dim=2)
        z = method.projector(pooled).unflatten(0, cubes.shape[:3])
        return z, method._predict(z)

    return method, predict


def test_no_gradient_leads_from_a_prediction_to_its_target(predictions):
    method, predict = predictions
    cubes = micro.views(method)["cubes"].requires_grad_()
    for step in range(4):
        for predicted in predict(cubes)[1]:
            (gradient,) = torch.autograd.grad(
                predicted[:, step].square().sum(), cubes, retain_graph=True
            )
            reached = gradient.flatten(3).abs().amax(dim=3) > 0  # [B steps lines]
            assert reached[:, : step + 1].all(), "of the past all is heard"
            assert not reached[:, step + 1 :].any(), "of the future nothing"


def test_a_changed_cube_changes_its_own_line_from_its_own_step_on(predictions):
    method, predict = predictions
    cubes = micro.views(method)["cubes"]
    changed = cubes.clone()
    changed[1, 2, 5] += 1.0
    with torch.no_grad():
        (z, before), (other, after) = predict(cubes), predict(changed)
    differs = (z != other).any(dim=3)
    assert differs.nonzero().tolist() == [[1, 2, 5]], "cubes are encoded apart"
    for first, second in zip(before, after, strict=True):
        differs = (first != second).any(dim=3)
        assert differs.nonzero().tolist() == [[1, 2, 5], [1, 3, 5]]


# -- the loss --------------------------------------------------------------------------


@pytest.mark.parametrize(("cubes", "ahead"), [(2, 1), (3, 2), (3, 1)])
def test_the_loss_is_infonce_of_a_loop(cubes, ahead):
    method = micro.method("cpc", cubes=cubes, ahead=ahead, temperature=0.2)
    views = micro.views(method)
    out = method(views)
    z = torch.stack(
        [
            method.projector(
                method.student(scan.flatten(0, 1))[-1].flatten(2).mean(dim=2)
            ).unflatten(0, scan.shape[:2])
            for scan in views["cubes"]
        ]
    )
    terms, fractions = [], []
    for k in range(1, ahead + 1):
        queries, keys = [], []
        for scan in range(2):
            for step in range(cubes - k):
                for line in range(z.shape[2]):
                    past = z[scan, : step + 1, line]
                    queries.append(
                        past[-1] + method.predictors[k - 1](method.context(past[None])[0][0, -1])
                    )
                    keys.append(z[scan, step + k, line])
        losses, right = [], []
        for row, query in enumerate(queries):
            scores = torch.stack([F.cosine_similarity(query, key, dim=0) / 0.2 for key in keys])
            losses.append(-scores.log_softmax(dim=0)[row])
            right.append(float(int(scores.argmax()) == row))
        terms.append(sum(losses) / len(losses))
        fractions.append(sum(right) / len(right))
        torch.testing.assert_close(out.losses[f"ahead_{k}"], terms[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.losses["total"], sum(terms) / ahead, rtol=1e-4, atol=1e-5)
    assert float(out.monitored["accuracy"]) == pytest.approx(sum(fractions) / ahead)


def test_it_begins_at_chance():
    """Equal predictions leave nothing to choose by: log of the number of targets."""
    method = micro.method("cpc", cubes=2, ahead=1)
    views = micro.views(method, batch=3)
    views["cubes"] = torch.zeros_like(views["cubes"])
    out = method(views)
    assert float(out.losses["total"].detach()) == pytest.approx(math.log(3 * 1 * 4), rel=1e-4)
    assert float(out.monitored["accuracy"]) == 0


# -- the encoder -----------------------------------------------------------------------


def test_cubes_of_32_train_every_encoder_tensor():
    """As the default crop of 96 has them; tests/test_methods.py names what smaller cubes leave
    out.
    """
    method = micro.method("cpc", cubes=2, ahead=1)
    cubes = torch.stack([micro.SyntheticCrops((32, 32, 32))[index]["crop"] for index in range(8)])
    out = method(
        {"cubes": cubes.view(1, 2, 4, 1, 32, 32, 32), "scan": torch.zeros(1, dtype=torch.long)}
    )
    out.losses["total"].backward()
    silent = {
        n
        for n, p in method.student.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    }
    assert silent == set()


# -- the picture and the settings ------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_the_wall_is_walked_from_left_to_right(dims):
    method = micro.method("cpc", spatial_dims=dims)
    lines = 3 ** (dims - 1)
    cubes = (
        torch.arange(3 * lines)
        .float()
        .view(1, 3, lines, 1, *[1] * dims)
        .expand(1, 3, lines, 1, *[4] * dims)
    )
    shown = method.show({"cubes": cubes})
    wall, known = shown.values()
    assert wall.shape == (1, 1, *[12] * dims)
    row = wall[(0, 0, *[0] * (dims - 1))]
    assert row[::4].tolist() == [0, lines, 2 * lines], "step by step the same line"
    across = wall[0, 0].movedim(-2, 0)[(slice(None), *[0] * (dims - 1))]
    assert across[::4].tolist() == [0, 1, 2]
    assert known[..., 8:].isnan().all()
    assert torch.equal(known[..., :8], wall[..., :8])
