"""The fraction of the device's peak that a run uses, where the peak is known."""

from __future__ import annotations

import copy
import json

import micro
import pytest
import torch

from nnssl import dist
from nnssl.modules.running import discard_all
from nnssl.train import peak
from nnssl.train.log import LOG, Log
from nnssl.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["smit", "simmim"])
def test_a_share_is_operations_over_the_peak(monkeypatch, name):
    monkeypatch.setattr(peak, "peak_of", lambda _: 2.0)
    method = micro.method(name)
    before = copy.deepcopy(method.state_dict())
    views = peak.trial(method, micro.CROP, micro.CPU)
    counted = peak.operations(lambda: method(views).losses["total"].backward())
    discard_all(method)
    method.zero_grad(set_to_none=True)
    fraction = peak.fraction_of_peak_per_scan(method, micro.CROP, micro.CPU)
    assert fraction == pytest.approx(counted / 2e12, rel=0.2)  # masks differ
    assert fraction > 0
    assert all(parameter.grad is None for parameter in method.parameters())
    for key, value in method.state_dict().items():
        same = torch.equal(value, before[key]) if torch.is_tensor(value) else value == before[key]
        assert same, key


def test_no_other_process_is_waited_for(monkeypatch):
    """It may know no peak of its device, or have no memory left."""
    together = []
    monkeypatch.setattr(peak, "peak_of", lambda _: 2.0)
    monkeypatch.setattr(peak, "operations", lambda _: together.append(dist.is_initialized()) or 1.0)
    monkeypatch.setattr(dist.td, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.td, "get_world_size", lambda: 4)
    method = micro.method("simmim")
    assert peak.fraction_of_peak_per_scan(method, micro.CROP, micro.CPU) == 1 / 8e12
    assert together == [False]
    assert dist.is_initialized()


def test_where_no_peak_is_known_or_memory_ends_nothing_is_said(monkeypatch):
    method = micro.method("simmim")
    assert peak.fraction_of_peak_per_scan(method, micro.CROP, micro.CPU) == 0

    def out(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(peak, "peak_of", lambda _: 2.0)
    monkeypatch.setattr(peak, "operations", out)
    assert peak.fraction_of_peak_per_scan(method, micro.CROP, micro.CPU) == 0


def test_the_log_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Log, "draw", lambda self: None)
    run = micro.run(tmp_path, "simmim", steps=2)
    run.fraction_of_peak_per_scan = 0.001
    train(run, lambda _: None)
    for line in (tmp_path / LOG).read_text().splitlines():
        row = json.loads(line)
        assert row["of_peak"] == pytest.approx(0.001 * row["samples_per_second"])
