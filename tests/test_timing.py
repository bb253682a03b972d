"""Costs side by side, peak memory, and freed memory kept."""

from __future__ import annotations

import argparse
import ctypes
import gc
import time

import pytest
import torch

from nnssl.bench.methods import parse_variant
from nnssl.bench.timing import Cost, comparison_table, peak_memory, ratio, side_by_side
from nnssl.host_memory import keep_freed_memory
from nnssl.methods import METHODS


def test_calls_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "AB"}
    costs = side_by_side(calls, rounds=3, warmup=1)
    assert "".join(order) == "AB" + "ABABAB"
    assert [len(rows) for rows in costs.values()] == [3, 3]


def test_the_ratio_is_the_median_over_rounds_not_of_medians():
    costs = {
        "base": [Cost(wall, 1, 0, 0) for wall in (1.0, 10.0, 2.0)],
        "ours": [Cost(wall, 2, 0, 0) for wall in (0.5, 6.0, 2.0)],
    }
    assert ratio(costs, "ours", "base") == pytest.approx(0.6)
    assert ratio(costs, "ours", "base", "cpu") == pytest.approx(2)
    assert "| ours | 2.000 | 2.000 | 0.000 | 0 | 0.60 | 2.00 |" in comparison_table(costs, "base")


def test_wall_and_cpu_time_are_told_apart():
    (cost,) = side_by_side({"sleep": lambda: time.sleep(0.05)}, rounds=1, warmup=0)["sleep"]
    assert cost.wall >= 0.05 > cost.cpu


def test_peak_memory_counts_what_is_alive_at_once():
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(1 << 18)

    def together() -> None:
        _ = [torch.ones(1 << 18) for _ in range(3)]

    assert peak_memory(one_after_the_other) == pytest.approx(1 << 20, rel=0.01)
    assert peak_memory(together) == pytest.approx(3 << 20, rel=0.01)


def test_garbage_of_an_earlier_measurement_does_not_lower_the_peak():
    def garbage() -> None:
        cycle: list = [torch.ones(1 << 18)]
        cycle.append(cycle)

    def work() -> None:
        first = torch.ones(1 << 18)
        gc.collect()  # as it may happen at any moment
        _ = [first, torch.ones(1 << 18)]

    gc.disable()
    try:
        peak_memory(garbage)
        assert peak_memory(work) == pytest.approx(2 << 20, rel=0.01)
    finally:
        gc.enable()


def test_keeping_freed_memory_is_harmless_without_glibc(monkeypatch):
    def absent(_):
        raise OSError("no C library by that name")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert keep_freed_memory() is False


def test_a_method_is_named_with_its_settings():
    assert parse_variant("dino") == (METHODS["dino"], METHODS["dino"].Config())
    method, config = parse_variant("smit:teacher_views=1,w_mpd=0")
    assert (method, config.teacher_views, config.w_mpd) == (METHODS["smit"], 1, 0.0)
    for wrong, message in (("smti", "unknown method 'smti'"), ("smit:views=1", "cannot set")):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            parse_variant(wrong)
