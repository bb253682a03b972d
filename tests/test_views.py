"""Masks, offsets and windows: exact counts, bounds, overlap, and no dependence on the batch."""

from __future__ import annotations

import itertools
import math

import micro
import pytest
import torch

from nnssl.methods import METHODS
from nnssl.methods.smit import SMIT
from nnssl.train.batches import generator_for, mixed_seed
from nnssl.views.intensity import (
    IntensityDraw,
    apply_intensity,
    apply_windows,
    blur,
    draw_intensity,
    draw_window,
)
from nnssl.views.masking import (
    block_grid,
    draw_masks,
    hide_blocks,
    keep_at_most,
    repeat_blocks,
    varied_blocks,
)
from nnssl.views.multicrop import random_views
from nnssl.views.pairs import two_views
from nnssl.views.spatial import (
    cut,
    cut_each,
    draw_box,
    draw_flips,
    draw_offset,
    flip,
    inside,
    resample,
    rotate,
    rotations,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- masks -----------------------------------------------------------------------------


def drawn(count: int, grid: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([torch.rand(grid, generator=generator(seed)) for seed in range(count)])


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 0.7, 0.75, 0.999])
@pytest.mark.parametrize("grid", [(6, 6, 6), (2, 3, 1), (1, 1, 1), (4, 4), (1, 7)])
def test_masks_hide_an_exact_number_of_blocks(grid, ratio):
    masked = hide_blocks(drawn(5, grid), ratio)
    assert masked.shape == (5, *grid)
    assert masked.dtype == torch.bool
    assert masked.flatten(1).sum(dim=1).tolist() == [math.ceil(ratio * math.prod(grid))] * 5


def test_every_block_is_hidden_equally_often():
    fraction = hide_blocks(drawn(2000, (3, 4)), 0.5).float().mean(dim=0)
    assert float((fraction - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 2000)


def test_the_share_is_of_the_blocks_that_may_be_hidden():
    within = torch.zeros(3, 4, 4, dtype=torch.bool)
    within[0, :2], within[1, 0, 0] = True, True
    masked = hide_blocks(drawn(3, (4, 4)), 0.6, within)
    assert masked.flatten(1).sum(dim=1).tolist() == [5, 1, 0]  # of 8, 1 and 0
    assert not bool((masked & ~within).any())


def test_at_most_so_many_cells_are_kept():
    masked = hide_blocks(
        drawn(3, (5, 5)), 0.5, drawn(3, (5, 5)) > torch.tensor([0.0, 0.8, 2.0]).view(3, 1, 1)
    )
    kept = keep_at_most(masked, 4, drawn(3, (5, 5)))
    assert kept.flatten(1).sum(dim=1).tolist() == [
        min(4, n) for n in masked.flatten(1).sum(dim=1).tolist()
    ]
    assert not bool((kept & ~masked).any())


def test_blocks_of_one_constant_are_known_in_any_unit():
    """Air that a plan has clipped, padding, and what a window cut off; a body's own noise is
    enough.
    """
    image = torch.full((2, 1, 16, 16, 24), -1.8)
    image[0, 0, :, :, 8:16] = 0.1 * randn(16, 16, 8)
    image[1, 0, 15, 0, 0] = 0.0  # one voxel of body
    varied = varied_blocks(image, (16, 8, 8))
    assert varied.shape == (2, 1, 2, 3)
    assert varied[0, 0].tolist() == [[False, True, False]] * 2
    assert varied[1, 0].tolist() == [[True, False, False], [False] * 3]
    assert torch.equal(varied, varied_blocks(1000 * image, (16, 8, 8)))
    masked = draw_masks(image, (16, 8, 8), 0.9, False, [generator(0), generator(1)])
    assert torch.equal(masked, varied)
    assert int(draw_masks(image, (16, 8, 8), 0.9, True, [generator(0), generator(1)]).sum()) == 12


@pytest.mark.parametrize("factor", [4, (4, 2, 1)])
def test_blocks_are_repeated_on_every_axis(factor):
    masked = hide_blocks(drawn(2, (2, 3, 1)), 0.5)
    fine = repeat_blocks(masked, factor)
    scale = [float(f) for f in ((factor,) * 3 if isinstance(factor, int) else factor)]
    expected = masked.float()[:, None]
    expected = torch.nn.functional.interpolate(expected, scale_factor=scale, mode="nearest")[
        :, 0
    ].bool()
    assert torch.equal(fine, expected)


def test_a_block_that_does_not_divide_the_crop_is_refused_with_a_crop_that_works():
    assert block_grid((96, 64), 16) == (6, 4)
    assert block_grid((96, 64), (16, 8)) == (6, 8)
    with pytest.raises(
        ValueError, match=r"block 16 does not divide crop 96x90x8 \(axis 1\).*--crop 96 80 16$"
    ):
        block_grid((96, 90, 8), 16)


# -- crops in regions ------------------------------------------------------------------


def test_offsets_stay_inside_and_reach_both_ends():
    region, crop, source = (7, 5, 4), (4, 5, 2), generator()
    drawn = {draw_offset(region, crop, source) for _ in range(300)}
    assert drawn == {(z, 0, x) for z in range(4) for x in range(3)}


@pytest.mark.parametrize(
    ("start", "size", "places"),
    [(5, 40, {0, 1, 2, 3, 4}), (-3, 14, {3, 4}), (0, 12, {0}), (-3, 12, {3}), (-4, 9, {2})],
)
def test_offsets_lie_in_the_scan_where_it_is_large_enough(start, size, places):
    """A region of 16, crops of 12, along one axis; a scan smaller than the crop lies in its
    middle.
    """
    (within,) = inside((16,), torch.tensor([[start]]), torch.tensor([[size]]))
    source = generator()
    assert {draw_offset((16,), (12,), source, within)[0] for _ in range(100)} == places


@pytest.mark.parametrize(("start", "size"), [(5, 40), (-3, 10), (-6, 4)])
def test_boxes_lie_in_the_scan_where_it_is_large_enough(start, size):
    (within,) = inside((16, 16), torch.tensor([[start, 0]]), torch.tensor([[size, 16]]))
    source = generator()
    for _ in range(50):
        (first, side), (other, _) = draw_box((16, 16), (0.3, 1.0), source, within).tolist()
        low, high = max(0, -start), min(16, size - start)
        if side <= high - low:
            assert low <= first <= first + side <= high
        else:
            assert first <= low + 1e-9
            assert first + side >= high - 1e-9
        assert -1e-9 <= first <= 16 - side + 1e-9
        assert other >= 0


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


# -- boxes -----------------------------------------------------------------------------


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("region", [(20, 30, 40), (24, 32)])
def test_boxes_lie_inside_and_have_one_share_on_every_axis(region):
    source, sizes = generator(), torch.tensor(region)
    boxes = torch.stack([draw_box(region, (0.25, 0.75), source) for _ in range(300)])
    assert boxes.shape == (300, len(region), 2)
    start, side = boxes.unbind(dim=2)
    fraction = side / sizes
    assert float((fraction - fraction[:, :1]).abs().max()) < 1e-12
    assert 0.25 <= float(fraction.min()) < 0.27
    assert 0.73 < float(fraction.max()) <= 0.75
    assert float(start.min()) >= 0
    assert bool((start + side <= sizes).all())
    assert torch.equal(draw_box(region, (1.0, 1.0), source)[:, 1], sizes.double())


@pytest.mark.parametrize("sides", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_boxes_that_do_not_fit_are_refused(sides):
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        draw_box((8, 8), sides, generator())


@pytest.mark.parametrize(("region", "size"), [((9, 12, 10), (5, 6, 7)), ((9, 12), (4, 12))])
def test_a_box_of_whole_numbers_is_cut_out_unchanged(region, size):
    images, offsets = (
        randn(3, 2, *region),
        [draw_offset(region, size, generator(seed)) for seed in range(3)],
    )
    boxes = torch.tensor(
        [[[o, s] for o, s in zip(offset, size, strict=True)] for offset in offsets]
    )
    expected = torch.stack(
        [cut(image, offset, size) for image, offset in zip(images, offsets, strict=True)]
    )
    assert torch.equal(resample(images, boxes.float(), size), expected)


@pytest.mark.parametrize(("region", "size"), [((9, 12, 10), (16, 14, 18)), ((9, 12), (16, 13))])
def test_enlarging_is_torchs_linear_interpolation(region, size):
    images = randn(2, 2, *region)
    boxes = torch.tensor([[[1.0, s - 2.0] for s in region]] * 2)
    inner = images[(..., *(slice(1, s - 1) for s in region))]
    wanted = torch.nn.functional.interpolate(
        inner, size, mode="trilinear" if len(size) == 3 else "bilinear"
    )
    got = resample(images, boxes, size)
    # at its border the box sees what lies beyond; `inner` does not
    within = (..., *(slice(2, -2) for _ in size))
    torch.testing.assert_close(got[within], wanted[within], rtol=1e-4, atol=1e-5)


def test_shrinking_averages():
    """Antialiased interpolation of torch, in 2D, is the oracle."""
    images = randn(2, 3, 24, 36)
    boxes = torch.tensor([[[0.0, 24.0], [0.0, 36.0]]] * 2)
    wanted = torch.nn.functional.interpolate(images, (10, 9), mode="bilinear", antialias=True)
    got = resample(images, boxes, (10, 9))
    # torch cuts the kernel at the border, here its middle is clamped
    within = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(got[within], wanted[within], rtol=1e-4, atol=1e-5)
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)
    small = resample(stripes, torch.tensor([[[0.0, 32.0]] * 2]), (8, 8))[..., 1:-1]
    torch.testing.assert_close(small, torch.full_like(small, 0.5))


def test_resampling_gives_one_image_the_same_bits_alone():
    images, size = randn(4, 1, 20, 24, 22), (9, 12, 10)
    boxes = torch.stack([draw_box((20, 24, 22), (0.3, 1.0), generator(seed)) for seed in range(4)])
    whole = resample(images, boxes, size)
    for index in range(4):
        assert torch.equal(
            whole[index], resample(images[index : index + 1], boxes[index : index + 1], size)[0]
        )


# -- flips and rotations ---------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_flips_are_torchs(dims):
    images = randn(2**dims, 2, *(3, 4, 5)[:dims])
    flips = torch.tensor(list(itertools.product([False, True], repeat=dims)))
    for image, flags, got in zip(images, flips, flip(images, flips), strict=True):
        assert torch.equal(got, image.flip([1 + axis for axis in range(dims) if flags[axis]]))
    drawn = torch.stack([draw_flips(dims, source) for source in [generator()] for _ in range(1000)])
    assert float((drawn.float().mean(dim=0) - 0.5).abs().max()) < 0.08


def matrix(rotation) -> torch.Tensor:
    """Where the rotation takes each axis, found from its effect on a cube of coordinates around the
    middle.
    """
    dims = len(rotation[0])
    axes = torch.meshgrid(*[torch.tensor([-1, 0, 1])] * dims, indexing="ij")
    # [dims 3 ...]: the old coordinates of what is now at each place
    rotated = rotate(torch.stack(axes), rotation)
    ends = [tuple(2 if a == axis else 1 for a in range(dims)) for axis in range(dims)]
    return torch.stack([rotated[(slice(None), *end)] for end in ends], dim=1)


@pytest.mark.parametrize(("dims", "classes"), [(2, 4), (3, 4), (3, 10), (3, 24)])
def test_rotations_are_proper_distinct_and_begin_with_none(dims, classes):
    found = rotations(dims, classes)
    matrices = [matrix(rotation) for rotation in found]
    assert len(found) == classes == len({tuple(m.flatten().tolist()) for m in matrices})
    assert torch.equal(matrices[0], torch.eye(dims, dtype=torch.long))
    assert all(round(float(torch.linalg.det(m.double()))) == 1 for m in matrices)
    if (dims, classes) != (3, 10):  # turns about single axes are no group
        group = {tuple(m.flatten().tolist()) for m in matrices}
        assert {tuple((a @ b).flatten().tolist()) for a in matrices for b in matrices} == group
    cube = randn(1, *[4] * dims)
    assert len({tuple(rotate(cube, rotation).flatten().tolist()) for rotation in found}) == classes


def test_each_list_of_rotations_begins_the_longer_one():
    assert rotations(3, 4) == rotations(3, 10)[:4] == rotations(3, 24)[:4]
    assert rotations(3, 10) == rotations(3, 24)[:10]


def test_turns_are_torchs_rot90():
    cube = randn(2, 3, 3, 3)
    expected = [
        cube,
        *(cube.rot90(k, plane) for plane in ((2, 3), (1, 3), (1, 2)) for k in (1, 2, 3)),
    ]
    for rotation, wanted in zip(rotations(3, 10), expected, strict=True):
        assert torch.equal(rotate(cube, rotation), wanted)
    square = randn(1, 5, 5)
    for turns, rotation in enumerate(rotations(2, 4)):
        assert torch.equal(rotate(square, rotation), square.rot90(turns, (1, 2)))


@pytest.mark.parametrize(("dims", "classes"), [(2, 24), (3, 6), (3, 0)])
def test_other_numbers_of_rotations_are_refused(dims, classes):
    with pytest.raises(ValueError, match=f"in {dims}D there are .* got {classes}"):
        rotations(dims, classes)


# -- intensities -----------------------------------------------------------------------


def test_an_intensity_that_changes_nothing_changes_no_bit():
    images = randn(2, 1, 6, 7, 8)
    assert torch.equal(apply_intensity(images, [IntensityDraw()] * 2), images)
    assert torch.equal(blur(images, torch.zeros(2, 3)), images)


def test_intensities_by_hand():
    images = randn(4, 1, 6, 7)
    draws = [
        IntensityDraw(low=-0.5, high=0.8),
        IntensityDraw(contrast=1.2, brightness=-0.3),
        IntensityDraw(gamma=1.5),
        IntensityDraw(),
    ]
    got = apply_intensity(images, draws)
    assert torch.equal(got[0], images[0].clamp(-0.5, 0.8))
    torch.testing.assert_close(got[1], images[1] * 1.2 - 0.3)
    low, high = images[2].min(), images[2].max()
    torch.testing.assert_close(
        got[2], ((images[2] - low) / (high - low)) ** 1.5 * (high - low) + low
    )
    assert torch.equal(got[3], images[3])


def test_noise_has_its_sd_and_comes_from_its_seed():
    images = torch.zeros(3, 1, 30, 30, 30)
    noise = apply_intensity(images, [IntensityDraw(noise=0.2, seed=seed) for seed in (1, 1, 2)])
    assert float(noise[0].std()) == pytest.approx(0.2, rel=0.02)
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert not images.any(), "the region itself must stay"


def test_blur_is_a_gaussian_along_each_axis():
    point = torch.zeros(2, 1, 21, 21)
    point[:, :, 10, 10] = 1
    got = blur(point, torch.tensor([[1.5, 0.0], [0.7, 1.2]]))
    positions = torch.arange(21) - 10.0
    for image, stds in zip(got[:, 0], ((1.5, 1e-6), (0.7, 1.2)), strict=True):
        kernels = [torch.exp(-0.5 * (positions / std) ** 2) for std in stds]
        wanted = torch.outer(kernels[0] / kernels[0].sum(), kernels[1] / kernels[1].sum())
        torch.testing.assert_close(image, wanted)
    flat = torch.full((1, 1, 9, 9, 9), 3.0)
    torch.testing.assert_close(blur(flat, torch.tensor([[1.0, 2.0, 0.5]])), flat)


def test_drawn_intensities_differ_and_use_up_the_same_chance():
    draws = [draw_intensity(source) for source in [generator()] for _ in range(500)]
    names = IntensityDraw._fields[2:7]
    quiet = {
        name: sum(getattr(d, name) == getattr(IntensityDraw(), name) for d in draws) / 500
        for name in names
    }
    assert quiet == pytest.approx(
        {"contrast": 0.5, "brightness": 0.5, "gamma": 0.7, "noise": 0.7, "blur": 0.7}, abs=0.08
    )
    assert len({draw.seed for draw in draws}) == 500
    lengths = set()
    for seed in range(20):
        source = generator(seed)
        draw_intensity(source)
        other = generator(seed)
        (
            torch.rand(3, generator=other),
            torch.rand(5, generator=other),
            torch.rand(5, generator=other),
        )
        torch.randint(2**62, (), generator=other)
        lengths.add(torch.equal(source.get_state(), other.get_state()))
    assert lengths == {True}


@pytest.mark.parametrize("shape", [(20, 24, 22), (32, 30)])
def test_an_image_gets_the_same_intensity_alone_and_in_a_batch(shape):
    images, draws = randn(6, 1, *shape), [draw_intensity(generator(seed)) for seed in range(6)]
    assert any(draw.blur for draw in draws)
    whole = apply_intensity(images, draws)
    for index, draw in enumerate(draws):
        assert torch.equal(whole[index], apply_intensity(images[index : index + 1], [draw])[0]), (
            draw
        )


# -- pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_two_views_do_not_depend_on_the_batch(dims):
    regions, crop = randn(4, 1, *[21] * dims), (16,) * dims
    whole = two_views(regions, [generator(seed) for seed in range(4)], crop)
    assert whole.shape == (2, 4, 1, *crop)
    assert torch.equal(whole, two_views(regions, [generator(seed) for seed in range(4)], crop))
    alone = [two_views(regions[i : i + 1], [generator(i)], crop) for i in range(4)]
    assert torch.equal(whole, torch.cat(alone, dim=1))
    assert not torch.equal(whole[0], whole[1])


def test_two_views_are_flipped_parts_where_intensities_are_left_out(monkeypatch):
    monkeypatch.setattr("nnssl.views.pairs.draw_intensity", lambda *_: IntensityDraw())
    region = randn(1, 1, 8, 8)
    views = two_views(region, [generator(3)], (6, 6))
    parts = [region[0, 0, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    flipped = [part.flip(axes) for part in parts for axes in ([], [0], [1], [0, 1])]
    for view in views[:, 0, 0]:
        assert sum(torch.equal(view, part) for part in flipped) == 1


# -- windows ---------------------------------------------------------------------------


def test_window_clips_and_leaves_the_rest():
    region = torch.linspace(-4, 8, 13)
    clipped = apply_windows(region[None], [(-1.0, 2.0)])[0]
    assert torch.equal(clipped, region.clamp(-1, 2))
    assert torch.equal(apply_windows(region[None], [(-math.inf, math.inf)])[0], region)


def test_windows_are_drawn_with_the_given_chance_and_within_bounds():
    source = generator()
    drawn = [draw_window(0.5, source) for _ in range(1000)]
    narrow = [bounds for bounds in drawn if math.isfinite(bounds[0])]
    assert 420 < len(narrow) < 580
    assert all(-2 <= low <= -0.4 and 0.8 <= high <= 5 for low, high in narrow)
    assert {draw_window(0.0, source) for _ in range(20)} == {(-math.inf, math.inf)}
    assert all(math.isfinite(draw_window(1.0, source)[0]) for _ in range(20))


def test_a_window_uses_up_the_same_chance_whether_it_happens_or_not():
    """Else window_jitter would change every mask that is drawn after it."""
    after = []
    for chance in (0.0, 1.0):
        source = generator()
        draw_window(chance, source)
        after.append(torch.rand(5, generator=source))
    assert torch.equal(*after)


# -- views of a method -----------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_views_of_a_scan_do_not_depend_on_its_batch(name, dims):
    method = micro.method(name, spatial_dims=dims)
    crops = micro.SyntheticCrops(method.region((32,) * dims))
    regions = torch.stack([crops[index]["crop"] for index in range(4)])

    def views(indices: list[int]) -> dict:
        return method.views(regions[indices], [generator_for(7, index) for index in indices])

    whole, halves = views([0, 1, 2, 3]), [views([0, 1]), views([2, 3])]
    for key, value in whole.items():
        axis = next(
            i for i, size in enumerate(value.shape) if size == 4 and halves[0][key].shape[i] == 2
        )
        assert torch.equal(value, torch.cat([half[key] for half in halves], dim=axis)), key


def test_smits_views_are_parts_of_the_region():
    method = micro.method(mask_block=8, window_jitter=0.0)
    crops = micro.SyntheticCrops(method.region((16, 32, 16)))
    assert crops.shape == (21, 42, 21)
    region = crops[0]["crop"]
    views = method.views(region[None], [generator_for(0, 0)])
    assert views["image"].shape == (2, 1, 1, 16, 32, 16)
    assert views["hidden_blocks"].shape == (2, 1, 2, 4, 2)
    assert views["hidden_blocks"].flatten(2).sum(dim=2).tolist() == [[12], [12]]  # ceil(0.7 * 16)
    windows = region.unfold(1, 16, 1).unfold(2, 32, 1).unfold(3, 16, 1)
    for image in views["image"][:, 0, 0]:
        found = (windows[0] == image).flatten(3).all(dim=3)
        assert int(found.sum()) == 1
    assert not torch.equal(views["hidden_blocks"][0], views["hidden_blocks"][1])


AIR = -1.8


def placed(region: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two regions [2 1 *region] of scans whose voxels are all different; starts and sizes [2 dims].

    The first scan is cut in the middle, the second is 20 voxels long along the first axis and
    padded.
    """
    dims = len(region)
    sizes = torch.tensor([[40] * dims, [20, *[40] * (dims - 1)]])
    starts = torch.tensor(
        [[3 + axis for axis in range(dims)], [-((region[0] - 20) // 2), *[4] * (dims - 1)]]
    )
    regions = torch.full((2, 1, *region), AIR)
    for image, start, size in zip(regions, starts.tolist(), sizes.tolist(), strict=True):
        low = [max(0, -s) for s in start]
        high = [min(r, n - s) for r, n, s in zip(region, size, start, strict=True)]
        inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        image[(0, *inner)] = scan_of(size)[
            tuple(slice(s + a, s + b) for s, a, b in zip(start, low, high, strict=True))
        ]
    return regions, starts, sizes


def scan_of(size: list[int]) -> torch.Tensor:
    return torch.arange(math.prod(size), dtype=torch.float32).view(size)


@pytest.mark.parametrize("name", ["smit", "simmim"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_method_knows_where_in_the_scan_each_view_lies(name, dims):
    method = micro.method(name, spatial_dims=dims, window_jitter=0.0)
    regions, starts, sizes = placed(method.region((16,) * dims))
    for seed in range(6):
        sources = [generator_for(seed, index) for index in range(2)]
        views = method.prepare_views(regions, sources, torch.tensor([7, 9]), starts, sizes)
        assert views["scan"].tolist() == [7, 9]
        assert torch.equal(views["start"], starts)
        assert torch.equal(views["size"], sizes)
        image = views["image"] if name == "smit" else views["image"][None]
        assert views["offset"].shape == (len(image), 2, dims)
        for view, offsets in zip(image, views["offset"], strict=True):
            for voxels, offset, size in zip(
                view[:, 0], offsets.tolist(), sizes.tolist(), strict=True
            ):
                assert all(0 <= o <= n - 16 for o, n in zip(offset, size, strict=True))
                expected = scan_of(size)[tuple(slice(o, o + 16) for o in offset)]
                assert torch.equal(voxels, expected)


@pytest.mark.parametrize("name", ["smit", "simclr", "byol", "mocov3"])
def test_two_views_lie_in_a_scan_smaller_than_their_region(name, monkeypatch):
    """A scan of 18 voxels in a region of 21: no voxel of a view of 16 is padding."""
    monkeypatch.setattr("nnssl.views.pairs.draw_intensity", lambda *_: IntensityDraw())
    method = micro.method(name)
    region = torch.full((1, 1, 21, 21, 21), AIR)
    region[:, :, 1:19] = 5.0
    for seed in range(10):
        views = method.prepare_views(
            region,
            [generator_for(seed, 0)],
            torch.zeros(1),
            torch.tensor([[-1, 0, 0]]),
            torch.tensor([[18, 21, 21]]),
        )
        assert float(views["image"].min()) > 0


def test_random_views_lie_in_a_scan_smaller_than_their_region(monkeypatch):
    """A scan of 20 voxels in a region of 42, boxes of at most 19."""
    monkeypatch.setattr("nnssl.views.multicrop.draw_intensity", lambda *_: IntensityDraw())
    region = torch.full((1, 1, 42, 42, 42), AIR)
    region[:, :, 11:31] = 5.0
    within = inside((42, 42, 42), torch.tensor([[-11, 0, 0]]), torch.tensor([[20, 42, 42]]))
    views = random_views(region, [generator(3)], 20, (0.3, 0.45), (8, 8, 8), within=within)
    assert float(views.min()) > 2
    assert float(random_views(region, [generator(3)], 20, (0.3, 0.45), (8, 8, 8)).min()) < 0


def test_both_views_of_a_scan_are_seen_through_the_same_window():
    method = micro.method(window_jitter=1.0)
    region = torch.linspace(-10, 10, 21**3).view(1, 1, 21, 21, 21)
    views = method.views(region, [generator_for(0, 3)])["image"]
    low, high = draw_window(1.0, generator_for(0, 3))
    for view in views:
        assert (float(view.min()), float(view.max())) == pytest.approx((low, high))


# -- seeds -----------------------------------------------------------------------------


def test_seeds_differ_wherever_a_part_differs():
    parts = [(s, word, i) for s in range(10) for word in ("views", "step") for i in range(100)]
    assert len({mixed_seed(*p) for p in parts}) == len(parts)
    assert mixed_seed(1, 23) != mixed_seed(12, 3)
    assert all(0 <= mixed_seed(*p) < 2**63 for p in parts)


def test_seeds_are_the_same_everywhere():
    """Pinned: another value would change every run and break every resume."""
    assert mixed_seed(0, "views", 0) == 5196748559695033836


def test_several_cuts_of_each_volume_are_those_of_slicing():
    volumes = torch.arange(2 * 6 * 7 * 8).reshape(2, 6, 7, 8)
    offsets = torch.tensor([[[0, 1, 2], [2, 3, 4]], [[1, 0, 3], [0, 2, 0]]])
    cuts = cut_each(volumes, offsets, (4, 4, 3))
    assert cuts.shape == (2, 2, 4, 4, 3)
    for view, rows in enumerate(offsets.tolist()):
        for scan, (z, y, x) in enumerate(rows):
            naive = volumes[scan, z : z + 4, y : y + 4, x : x + 3]
            assert torch.equal(cuts[view, scan], naive)
