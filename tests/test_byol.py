"""BYOL: what it predicts of which view, closed forms, and that its embeddings stay apart."""

from __future__ import annotations

import micro
import pytest
import torch
import torch.nn.functional as F

from nnssl.train.monitors import ALIKE, embedding_std

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_the_distance_of_unit_vectors_both_ways(dims):
    """Grill 2020, eq. 2: the squared distance of the normalised prediction and the normalised
    target.
    """
    method = micro.method("byol", spatial_dims=dims)
    views = micro.views(method, batch=3, crop=(32,) * dims)
    q = [F.normalize(method.predictor(method.student(view)[1]), dim=1) for view in views["image"]]
    z = [F.normalize(method.answers(method.teacher(view)[1]), dim=1) for view in views["image"]]
    wanted = ((q[0] - z[1]) ** 2).sum(dim=1).mean() + ((q[1] - z[0]) ** 2).sum(dim=1).mean()
    torch.testing.assert_close(method(views).losses["total"], wanted)


def test_the_loss_is_zero_where_the_prediction_is_right():
    method = micro.method("byol")
    method.predictor.mlp = torch.nn.Identity()
    views = micro.views(method)
    same = {
        **views,
        "image": torch.stack([views["image"][0]] * 2),
    }  # equal views, and the teacher starts as the student
    assert float(method(same).losses["total"].detach()) == pytest.approx(0, abs=1e-5)


def test_the_predictor_is_the_students_alone():
    method = micro.method("byol")
    assert not any("predictor" in name for name, _ in method.teacher.named_parameters())
    method(micro.views(method)).losses["total"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.predictor.parameters())


def test_what_is_exported_is_the_student():
    method = micro.method("byol")
    assert method.encoder is method.student.encoder


def test_embeddings_stay_apart_without_negatives():
    method = micro.method("byol")
    micro.steps(method, 40, batch=4, crop=micro.CROP, lr=method.config.lr)
    with torch.no_grad():
        embedding = method(micro.views(method, batch=6)).monitored["embedding"]
    assert embedding_std(embedding) > 3 * ALIKE
