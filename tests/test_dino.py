"""DINO alone: its loss against lightly and a naive loop, its views, its schedules; and multi-crop
views.
"""

from __future__ import annotations

import math
from itertools import product

import micro
import pytest
import torch
from torch import Tensor

from nnssl.modules.losses import Centre, cross_view
from nnssl.modules.running import discard_all, update_all
from nnssl.views.multicrop import MultiCropConfig, local_size, multicrop, random_views
from nnssl.views.spatial import crop_size, region_size

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + number) for number in range(count)]


# -- the loss: lightly (MIT) is the oracle ---------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("student_t", "start_t", "end_t"), [(0.1, 0.04, 0.07), (0.1, 0.04, 0.04), (0.5, 0.2, 0.1)]
)
@pytest.mark.parametrize(("batch", "prototypes", "local"), [(1, 4, 0), (3, 16, 1), (2, 257, 4)])
def test_the_loss_is_lightlys_over_epochs(batch, prototypes, local, student_t, start_t, end_t):
    from lightly.loss import DINOLoss

    warmup, epochs = 4, 7
    oracle = DINOLoss(prototypes, start_t, end_t, warmup, student_t, center_momentum=0.9)
    # lightly reaches the end with the last of its `warmup` epochs, at epoch warmup - 1
    method = micro.method(
        "dino",
        teacher_temperature_start=start_t,
        teacher_temperature_end=end_t,
        temperature_warmup=(warmup - 1) / epochs,
    )
    centre = Centre(prototypes, momentum=0.9)
    for epoch in range(epochs):
        teacher, student = (
            randn(2, batch, prototypes, seed=epoch),
            randn(2 + local, batch, prototypes, seed=99 + epoch),
        )
        expected = oracle(list(teacher), list(student), epoch=epoch)
        method.progress = epoch / epochs
        target = centre.sharpen(teacher.flatten(0, 1), method.teacher_temperature()).view_as(
            teacher
        )
        update_all(centre)
        torch.testing.assert_close(
            cross_view(student, target, student_t), expected, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(centre.value, oracle.center.flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("targets", "views"), [(2, 2), (2, 6), (1, 2), (3, 4)])
def test_the_loss_is_a_loop_over_pairs(targets, views):
    student, target = randn(views, 2, 5), randn(targets, 2, 5, seed=1).softmax(-1)
    terms = []
    for t, v, b in product(range(targets), range(views), range(2)):
        if t != v:
            p = [math.exp(value / 0.1) for value in student[v, b].tolist()]
            terms.append(
                -sum(
                    wanted * math.log(given / sum(p))
                    for wanted, given in zip(target[t, b].tolist(), p, strict=True)
                )
            )
    assert float(cross_view(student, target, 0.1)) == pytest.approx(
        sum(terms) / len(terms), rel=1e-5
    )


def test_uniform_targets_cost_log_k_whatever_the_number_of_views():
    for views in (2, 5):
        loss = cross_view(torch.zeros(views, 3, 50), torch.full((2, 3, 50), 1 / 50), 0.1)
        assert float(loss) == pytest.approx(math.log(50))


@pytest.mark.parametrize(("targets", "views"), [(1, 1), (3, 2)])
def test_a_loss_without_pairs_is_refused(targets, views):
    with pytest.raises(
        ValueError, match=f"cross-view pairs need 2 views .* {targets}, got {views}"
    ):
        cross_view(torch.zeros(views, 1, 4), torch.zeros(targets, 1, 4), 0.1)


def test_the_loss_is_computed_in_fp32_under_autocast():
    student, target = randn(4, 2, 64).bfloat16(), randn(2, 2, 64, seed=1).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_view(student, target, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_view(student, target, 0.1))


# -- the method ------------------------------------------------------------------------


def test_each_view_is_asked_what_the_teacher_says_of_the_others():
    method = micro.method("dino", local_views=3)
    views = micro.views(method)
    with torch.no_grad():
        teacher = [method.teacher(view).image for view in views["global"]]
        student = [
            method.student(view).image for name in ("global", "local") for view in views[name]
        ]
    discard_all(method)
    pairs = []
    for (t, target), (v, logits) in product(enumerate(teacher), enumerate(student)):
        if t != v:
            pairs.append(
                -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1).mean()
            )
    assert len(pairs) == 2 * 5 - 2
    step = method(views)
    torch.testing.assert_close(
        step.losses["total"], torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5
    )
    assert step.monitored["embedding"].shape == (4, method.encoder.channels[-1])


def test_the_teacher_sees_global_views_alone_and_the_student_is_called_twice():
    method = micro.method("dino")
    shapes = {"teacher": [], "student": []}
    for name, model in (("teacher", method.teacher.model), ("student", method.student)):
        model.encoder.register_forward_pre_hook(
            lambda _, args, name=name: shapes[name].append(tuple(args[0].shape))
        )
    method(micro.views(method))
    assert shapes["teacher"] == [(4, 1, 16, 16, 16)]
    assert shapes["student"] == [(4, 1, 16, 16, 16), (8, 1, 8, 8, 8)]


def test_without_local_views_it_goes_on():
    method = micro.method("dino", local_views=0)
    views = micro.views(method)
    assert "local" not in views
    assert torch.isfinite(method(views).losses["total"])
    assert list(method.show(views)) == ["global view 1", "global view 2"]


@pytest.mark.parametrize("maps", [1, 2, 5])
def test_means_of_several_maps_are_put_side_by_side(maps):
    method = micro.method("dino", pooled_maps=maps)
    views = micro.views(method)
    embedding = method(views).monitored["embedding"]
    with torch.no_grad():
        every = method.teacher.model.encoder(views["global"].flatten(0, 1))
    expected = torch.cat([m.flatten(2).mean(dim=2) for m in every[5 - maps :]], dim=1)
    torch.testing.assert_close(embedding, expected)


def test_the_teacher_follows_and_the_centre_moves_after_the_step_alone():
    method = micro.method("dino", teacher_momentum=0.5)
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1)
    method(micro.views(method))
    assert float(method.image_centre.value.abs().sum()) == 0
    method.after_step(0.0)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)
    assert float(method.image_centre.value.abs().sum()) > 0


def test_prototypes_are_held_at_the_start():
    method = micro.method("dino", freeze_prototypes=0.5)
    views = micro.views(method, crop=(32, 32, 32))
    weight = method.student.image_head.prototypes.weight
    for progress, held in ((0.0, True), (0.5, False)):
        method.progress = progress
        method.zero_grad()
        method(views).losses["total"].backward()
        assert (float(weight.grad.abs().sum()) == 0) is held


# -- multi-crop views ------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 24, 32, 40, 48, 60, 62, 64, 96, 128])
def test_crop_region_and_local_size(size):
    assert crop_size(region_size((size,))) == (size,)
    (local,) = local_size((size,))
    assert local % 2 == 0
    assert abs(local - size / 2) <= 1


@pytest.mark.parametrize(("crop", "local"), [((32, 16, 16), (16, 8, 8)), ((40, 24), (20, 12))])
def test_views_have_their_sizes_and_do_not_depend_on_the_batch(crop, local):
    config = MultiCropConfig(local_views=3)
    regions = randn(3, 1, *region_size(crop))
    together = multicrop(regions, generators(3), config)
    assert together["global"].shape == (2, 3, 1, *crop)
    assert together["local"].shape == (3, 3, 1, *local)
    alone = multicrop(regions[1:2], generators(3)[1:2], config)
    for name, views in together.items():
        torch.testing.assert_close(alone[name][:, 0], views[:, 1])


def test_every_view_is_another_one():
    views = random_views(randn(1, 1, 16, 16, 16), generators(1), 4, (0.3, 0.6), (8, 8, 8))[:, 0]
    assert all(not torch.equal(views[a], views[b]) for a, b in product(range(4), range(4)) if a < b)


def test_a_view_shows_its_share_of_the_region(monkeypatch):
    """A ramp along each axis: the range of a view's values is the side of its box."""
    monkeypatch.setattr("nnssl.views.multicrop.apply_intensity", lambda images, _: images)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 64
        region = torch.linspace(0, 1, 64).view(shape).expand(1, 1, 64, 64, 64)
        for low, high in ((0.3, 0.3), (0.6, 0.6), (0.3, 0.6)):
            views = random_views(region, generators(1, seed=axis), 6, (low, high), (32, 32, 32))
            spans = views.flatten(1).amax(1) - views.flatten(1).amin(1)
            assert float(spans.min()) > low - 0.05
            assert float(spans.max()) < high + 0.01
