"""SimCLR: what its loss compares, what its queue remembers, and what it refuses."""

from __future__ import annotations

import micro
import pytest
import torch

from nnssl.modules.contrast import EMPTY, nt_xent
from nnssl.modules.running import discard_all

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_nt_xent_between_the_two_views_of_each_crop():
    method = micro.method("simclr", queue=0)
    views = micro.views(method, batch=3)
    first, second = (method.student(view)[1] for view in views["image"])
    out = method(views)
    torch.testing.assert_close(
        (out.losses["total"], out.monitored["accuracy"]),
        nt_xent(first, second, method.config.temperature, views["scan"]),
    )


def test_the_order_of_the_views_and_of_the_scans_does_not_matter():
    method = micro.method("simclr")
    micro.steps(method, 2, crop=micro.CROP)
    views = micro.views(method, batch=3)
    loss = method(views).losses["total"]
    reversed_views = {"image": views["image"].flip(0, 1), "scan": views["scan"].flip(0)}
    torch.testing.assert_close(method(reversed_views).losses["total"], loss)


def test_crops_of_one_scan_are_no_negatives():
    """Two crops of the same scan, and nothing else to compare with: there is nothing to get
    wrong.
    """
    method = micro.method("simclr")
    views = {**micro.views(method), "scan": torch.tensor([3, 3])}
    out = method(views)
    assert float(out.losses["total"].detach()) == float(out.monitored["accuracy"]) == 0


def test_the_queue_remembers_both_views_once_the_step_is_done():
    method = micro.method("simclr", queue=6)
    views = micro.views(method)
    with torch.no_grad():
        projected = method.student(views["image"].flatten(0, 1))[1]
    before = method(views).losses["total"]
    assert method.queue.scans.tolist() == [EMPTY] * 6
    method.after_step(0.5)
    assert method.queue.scans.tolist() == [0, 0, 1, 1, EMPTY, EMPTY]
    wanted = torch.nn.functional.normalize(projected, dim=1)[[0, 2, 1, 3]]
    torch.testing.assert_close(method.queue.keys[:4], wanted)
    assert not torch.equal(method(views).losses["total"], before)  # more to compare with


def test_the_parts_of_a_step_see_the_same_queue():
    method = micro.method("simclr")
    first = micro.views(method)
    loss = method(first).losses["total"]
    assert torch.equal(method(first).losses["total"], loss)
    discard_all(method)
    assert torch.equal(method(first).losses["total"], loss)
