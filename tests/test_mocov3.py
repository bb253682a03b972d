"""MoCo v3: queries against the keys of the other view, a teacher without gradient, patches that
stay as they were.
"""

from __future__ import annotations

import micro
import pytest
import torch
import torch.nn.functional as F

from nnssl.modules.schedules import cosine

pytestmark = pytest.mark.usefixtures("one_thread")
PATCHES = ("student.encoder.patch_embed.proj.weight", "student.encoder.patch_embed.proj.bias")


@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.9])
def test_the_loss_is_algorithm_1_of_the_paper(temperature):
    method = micro.method("mocov3", queue=0, temperature=temperature)
    views = micro.views(method, batch=3)

    def contrast(query, key):
        cosines = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T
        return 2 * temperature * F.cross_entropy(cosines / temperature, torch.arange(3))

    q1, q2 = (method.predictor(method.student(view)[1]) for view in views["image"])
    k1, k2 = (method.keys(method.teacher(view)[1]) for view in views["image"])
    torch.testing.assert_close(method(views).losses["total"], contrast(q1, k2) + contrast(q2, k1))


def test_the_two_views_may_change_places():
    method = micro.method("mocov3")
    micro.steps(method, 2, crop=micro.CROP)
    views = micro.views(method)
    torch.testing.assert_close(
        method({**views, "image": views["image"].flip(0)}).losses["total"],
        method(views).losses["total"],
    )


def test_the_queue_holds_the_teachers_keys_of_both_views():
    method = micro.method("mocov3")
    views = micro.views(method)
    keys = F.normalize(method.keys(method.teacher(views["image"].flatten(0, 1))[1]), dim=1)
    method(views)
    method.after_step(0.5)
    assert method.queue.scans.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(method.queue.keys, keys[[0, 2, 1, 3]])


def test_the_teacher_follows_and_gets_no_gradient():
    method = micro.method("mocov3", teacher_momentum=0.9)
    before = {name: p.clone() for name, p in method.teacher.model.named_parameters()}
    micro.steps(method, 1, crop=micro.CROP)
    student = dict(method.student.named_parameters())
    m = cosine(0.9, 1.0, 1.0)  # at the end of a run it stands still
    for name, parameter in method.teacher.model.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter, m * before[name] + (1 - m) * student[name])
    method.after_step(0.0)
    for name, parameter in method.teacher.model.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * before[name] + 0.1 * student[name])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_projection_stays_random_where_asked(frozen):
    method = micro.method("mocov3", freeze_patches=frozen)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if name in PATCHES}
    micro.steps(method, 2, crop=micro.CROP)
    after = dict(method.named_parameters())
    assert len(before) == 2
    assert all(torch.equal(after[name], value) == frozen for name, value in before.items())
