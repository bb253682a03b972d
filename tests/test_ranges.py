"""What is meant in HU, such as windows and brightness, is converted by the plan's policy, in every
method.
"""

from __future__ import annotations

import micro
import numpy as np
import pytest
import torch

from nnssl.hu import HUPolicy
from nnssl.methods import METHODS
from nnssl.train.batches import generator_for
from nnssl.views.intensity import HIGHS, LOWS, STANDARD, Ranges, draw_intensity, draw_window


@pytest.mark.parametrize(
    "policy",
    [
        HUPolicy(-447, 1394, 40, 254.5),
        HUPolicy(-175, 250, 2, 110),
        HUPolicy(-1000, 3000, 823.6, 674.9, ((-500, -571), (-150, -89), (100, 1572), (1000, 2556))),
    ],
)
def test_windows_and_brightness_mean_the_same_hu_by_every_policy(policy):
    source, ranges = torch.Generator().manual_seed(0), Ranges.of(policy)
    drawn = np.array([draw_window(1.0, source, ranges) for _ in range(1000)])
    lows, highs = policy.restore(drawn).T
    assert lows.min() == pytest.approx(max(LOWS[0], policy.low), abs=10)
    assert lows.max() == pytest.approx(LOWS[1], abs=10)
    assert highs.min() == pytest.approx(HIGHS[0], abs=10)
    assert highs.max() == pytest.approx(min(HIGHS[1], policy.high), abs=10)
    if not policy.interior:
        assert ranges.brightnesses == pytest.approx((-100 / policy.std, 100 / policy.std))
        assert ranges.noises == pytest.approx((0, 75 / policy.std))
    draws = [draw_intensity(source, ranges) for _ in range(500)]
    assert max(draw.brightness for draw in draws) == pytest.approx(ranges.brightnesses[1], rel=0.05)
    assert max(draw.noise for draw in draws) == pytest.approx(ranges.noises[1], rel=0.05)


def test_without_a_policy_or_with_one_of_lung_alone_ranges_are_those_of_a_body():
    assert Ranges.of(None) == Ranges.of(HUPolicy(-1000, -200, -800, 90)) == STANDARD
    assert (STANDARD.lows, STANDARD.highs) == ((-2.0, -0.4), (0.8, 5.0))
    assert STANDARD.brightnesses == pytest.approx((-0.4, 0.4))
    assert STANDARD.noises == pytest.approx((0, 0.3))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_its_intensities_by_the_ranges_it_is_given(name):
    method = micro.method(name)
    method.ranges = Ranges((7.0, 7.0), (7.0, 7.0), (0.0, 0.0), (0.0, 0.0))
    crops = micro.SyntheticCrops(method.region((32,) * 3))
    regions = torch.stack([crops[index]["crop"] for index in range(2)])
    values = []
    for seed in range(4):
        views = method.views(regions, [generator_for(seed, index) for index in range(2)])
        values += [v.float().max() for v in views.values()]
    assert max(values) > 5.0
