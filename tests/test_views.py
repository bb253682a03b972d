"""Masks, offsets and windows: exact counts, bounds, overlap, and no dependence on the batch."""

from __future__ import annotations

import math

import micro
import pytest
import torch

from nnssl.methods import METHODS
from nnssl.methods.smit import SMIT
from nnssl.train.batches import generator_for, mixed_seed
from nnssl.views.intensity import HIGHS, LOWS, apply_window, draw_window
from nnssl.views.masking import block_grid, draw_blocks, repeat_blocks
from nnssl.views.spatial import cut, draw_offset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 0.7, 0.75, 0.999])
@pytest.mark.parametrize("grid", [(6, 6, 6), (2, 3, 1), (1, 1, 1), (4, 4), (1, 7)])
def test_masks_hide_an_exact_number_of_blocks(grid, ratio):
    for seed in range(5):
        masked = draw_blocks(grid, ratio, generator(seed))
        assert masked.shape == grid
        assert masked.dtype == torch.bool
        assert int(masked.sum()) == math.ceil(ratio * math.prod(grid))


def test_every_block_is_hidden_equally_often():
    drawn = torch.stack([draw_blocks((3, 4), 0.5, source) for source in [generator()] for _ in range(2000)])
    share = drawn.float().mean(dim=0)
    assert float((share - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 2000)


def test_blocks_are_repeated_on_every_axis():
    masked = torch.stack([draw_blocks((2, 3, 1), 0.5, generator(seed)) for seed in (0, 1)])
    fine = repeat_blocks(masked, 4)
    assert fine.shape == (2, 8, 12, 4)
    assert torch.equal(fine[:, ::4, ::4, ::4], masked)
    expected = masked.float()[:, None]
    expected = torch.nn.functional.interpolate(expected, scale_factor=4, mode="nearest")[:, 0].bool()
    assert torch.equal(fine, expected)


def test_a_block_that_does_not_divide_the_crop_is_refused_with_a_crop_that_works():
    assert block_grid((96, 64), 16) == (6, 4)
    with pytest.raises(ValueError, match=r"block 16 does not divide crop 96x90x8 \(axis 1\).*--crop 96 80 16$"):
        block_grid((96, 90, 8), 16)


# -- crops in regions ------------------------------------------------------------------------------------------------


def test_offsets_stay_inside_and_reach_both_ends():
    region, crop, source = (7, 5, 4), (4, 5, 2), generator()
    drawn = {draw_offset(region, crop, source) for _ in range(300)}
    assert drawn == {(z, 0, x) for z in range(4) for x in range(3)}


def test_cut_is_a_view_of_the_part():
    volume = torch.arange(2 * 4 * 5 * 6).view(2, 4, 5, 6)
    part = cut(volume, (1, 0, 3), (2, 5, 3))
    assert torch.equal(part, volume[:, 1:3, 0:5, 3:6])
    assert part.untyped_storage().data_ptr() == volume.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", range(16, 257, 16))
def test_region_and_crop_know_each_other(size):
    """SMIT.views takes the crop's size from the region's: region - region // 4."""
    (region,) = SMIT.region((size,))
    assert region - region // 4 == size
    overlap = (2 * size - region) / size  # of two views at opposite ends, on one axis
    assert overlap**3 >= 0.296


def test_the_papers_region():
    assert SMIT.region((96, 96, 96)) == (128, 128, 128)


# -- windows ---------------------------------------------------------------------------------------------------------


def test_window_clips_and_leaves_the_rest():
    region = torch.linspace(-4, 8, 13)
    clipped = apply_window(region, (-1.0, 2.0))
    assert torch.equal(clipped, region.clamp(-1, 2))
    assert torch.equal(apply_window(region, (-math.inf, math.inf)), region)


def test_windows_are_drawn_with_the_given_chance_and_within_bounds():
    source = generator()
    drawn = [draw_window(0.5, source) for _ in range(1000)]
    narrow = [bounds for bounds in drawn if math.isfinite(bounds[0])]
    assert 420 < len(narrow) < 580
    assert all(LOWS[0] <= low <= LOWS[1] and HIGHS[0] <= high <= HIGHS[1] for low, high in narrow)
    assert {draw_window(0.0, source) for _ in range(20)} == {(-math.inf, math.inf)}
    assert all(math.isfinite(draw_window(1.0, source)[0]) for _ in range(20))


def test_a_window_uses_up_the_same_chance_whether_it_happens_or_not():
    """Else window_jitter would change every mask that is drawn after it."""
    after = []
    for chance in (0.0, 1.0):
        source = generator()
        draw_window(chance, source)
        after.append(draw_blocks((3, 3, 3), 0.5, source))
    assert torch.equal(*after)


# -- views of a method -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_views_of_a_scan_do_not_depend_on_its_batch(name, dims):
    method = micro.method(name, spatial_dims=dims)
    made = micro.MadeCrops(method.region((32,) * dims))
    regions = torch.stack([made[index]["crop"] for index in range(4)])

    def views(indices: list[int]) -> dict:
        return method.views(regions[indices], [generator_for(7, index) for index in indices])

    whole, halves = views([0, 1, 2, 3]), [views([0, 1]), views([2, 3])]
    for key, value in whole.items():
        axis = next(i for i, size in enumerate(value.shape) if size == 4 and halves[0][key].shape[i] == 2)
        assert torch.equal(value, torch.cat([half[key] for half in halves], dim=axis)), key


def test_smits_views_are_parts_of_the_region():
    method = micro.method(mask_block=8, window_jitter=0.0)
    made = micro.MadeCrops(method.region((16, 32, 16)))
    assert made.shape == (21, 42, 21)
    region = made[0]["crop"]
    views = method.views(region[None], [generator_for(0, 0)])
    assert views["image"].shape == (2, 1, 1, 16, 32, 16)
    assert views["masked"].shape == (2, 1, 2, 4, 2)
    assert views["masked"].flatten(2).sum(dim=2).tolist() == [[12], [12]]  # ceil(0.7 * 16)
    places = region.unfold(1, 16, 1).unfold(2, 32, 1).unfold(3, 16, 1)
    for image in views["image"][:, 0, 0]:
        found = (places[0] == image).flatten(3).all(dim=3)
        assert int(found.sum()) == 1
    assert not torch.equal(views["masked"][0], views["masked"][1])


def test_both_views_of_a_scan_are_seen_through_the_same_window():
    method = micro.method(window_jitter=1.0)
    region = torch.linspace(-10, 10, 21**3).view(1, 1, 21, 21, 21)
    views = method.views(region, [generator_for(0, 3)])["image"]
    low, high = draw_window(1.0, generator_for(0, 3))
    for view in views:
        assert (float(view.min()), float(view.max())) == pytest.approx((low, high))


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_differ_wherever_a_part_differs():
    parts = [(s, word, i) for s in range(10) for word in ("views", "step") for i in range(100)]
    assert len({mixed_seed(*p) for p in parts}) == len(parts)
    assert mixed_seed(1, 23) != mixed_seed(12, 3)
    assert all(0 <= mixed_seed(*p) < 2**63 for p in parts)


def test_seeds_are_the_same_everywhere():
    """Pinned: another value would change every run and break every resume."""
    assert mixed_seed(0, "views", 0) == 5196748559695033836
