"""Stacks of DICOM slices: their order, what is no stack, and how others are brought on a straight
grid.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_dicom import element, unsigned_short, write_stored_slice
from synthetic_scans import AXIAL, ct_array, straight, write_series

from nnssl.data.dicom import series_in
from nnssl.data.dicom_stacks import EACH_VERSION
from nnssl.data.refusals import UnusableScanError
from nnssl.data.scans import Found, read_found, read_scan
from nnssl.data.stacks import arrange, straighten
from nnssl.data.survey import inspect_scan


def tilted(degrees: float) -> tuple[float, ...]:
    """Rows stay level, columns lean: what a tilted gantry writes."""
    radians = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(radians)), float(-np.sin(radians)))


def oblique(count: int, degrees: float) -> list[tuple[float, ...]]:
    normal = np.cross(*np.reshape(tilted(degrees), (2, 3)))
    return [tuple(2.0 * i * normal) for i in range(count)]


COUNT = 12
GEOMETRIES = {
    "unevenly spaced": (
        {"positions": [*straight(9), *straight(15, 2.6)[12:]]},
        "unevenly spaced: 2 to",
    ),
    "a slice twice": ({"positions": [*straight(11), straight(11)[4]]}, "at the same position"),
    "localizer": ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localizer"),
    "said to be a reformat": (
        {"image_type": "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE"},
        "reformat",
    ),
    "coronal": (
        {
            "orientation": (1, 0, 0, 0, 0, -1),
            "positions": [(0.0, 2.0 * i, 0.0) for i in range(COUNT)],
        },
        "reformat, not the primary stack: its slices are turned by 90 degrees",
    ),
    "oblique reformat": (
        {"orientation": tilted(25), "positions": oblique(COUNT, 25)},
        "turned by 25 degrees",
    ),
    "skewed": ({"positions": [(-10.0, 2.0 * i, 2.0 * i) for i in range(COUNT)]}, "skewed"),
    "PET": ({"modality": "PT"}, "is PT, not CT or MR"),
    "moved aside": (
        {"positions": [(x + 9.0 * (i == 6), y, z) for i, (x, y, z) in enumerate(straight(12))]},
        "beside",
    ),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_dicom_that_is_no_straight_primary_stack_is_left_out(tmp_path, name):
    options, words = GEOMETRIES[name]
    # The tag claims that nothing is tilted: the positions are believed.
    write_series(
        tmp_path,
        ct_array((COUNT, 16, 18)),
        **{"positions": straight(COUNT), **options},
        **{"0018_1120": "0"},
    )
    (uid,) = series_in(tmp_path)
    assert words in series_in(tmp_path)[uid].reason
    assert words in inspect_scan(Found(str(tmp_path), uid)).reason


def test_arrange_equals_its_closed_form():
    shuffled = np.random.default_rng(0).permutation(30)
    found = arrange(np.array(straight(30, 1.25))[shuffled], np.array(AXIAL))
    np.testing.assert_array_equal(shuffled[found.order], np.arange(30))
    assert found.spacing == pytest.approx(1.25)
    assert found.note == ""
    with pytest.raises(UnusableScanError, match="two interleaved stacks"):
        arrange(np.array([(0, 0, 3.0 * (i // 2) + (i % 2)) for i in range(40)]), np.array(AXIAL))


@pytest.mark.parametrize("slices", [(5.0, 1, 1), (1.2, 3, 6), (1.25, 3, 1)])
def test_gaps_at_the_limit_are_filled_whatever_was_rounded(slices):
    """Of slices of some mm, so many are missing; places are rounded to so many digits."""
    step, missing, digits = slices
    heights = [round(-100.3 + step * i, digits) for i in range(30) if not 10 <= i < 10 + missing]
    found = arrange(np.array([(-10.0, -20.0, z) for z in heights]), np.array(AXIAL))
    assert "unevenly spaced" in found.note
    assert found.spacing == pytest.approx(step, abs=0.051)


def test_inverted_dicom_is_refused_by_its_name(tmp_path):
    for number, plane in enumerate(ct_array((10, 16, 18)).clip(-1000) + 1024):
        path = tmp_path / f"{number}.dcm"
        write_stored_slice(path, plane, number, "-1024", "1")
        path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    (series,) = series_in(tmp_path).values()
    assert series.reason.startswith("is MONOCHROME1 (PhotometricInterpretation")


PIXEL = (0.8, 0.8)
BALLS = ((0.0, -8.0, 20.0), (10.0, 12.0, 52.0))  # mm, in the patient's frame


def truth(points: np.ndarray) -> np.ndarray:
    """HU at points [... 3] in mm: two soft balls in a medium that grows denser towards the head."""
    hu = -200 + 2.0 * points[..., 2]
    for ball in BALLS:
        hu = hu + 300 * np.exp(-np.square(points - ball).sum(-1) / (2 * 6.0**2))
    return hu


def grid(
    corner: np.ndarray, orientation: np.ndarray, counts: tuple[int, int], pixel: tuple[float, float]
):
    """Points [Y X 3] of a slice."""
    y, x = np.meshgrid(*map(np.arange, counts), indexing="ij")
    across, down = orientation[:3] * pixel[0], orientation[3:] * pixel[1]
    return corner + x[..., None] * across + y[..., None] * down


HEIGHTS = {
    "even": np.arange(0, 75, 2.5),
    "fine, then coarse": np.concatenate([np.arange(0, 30, 2.0), np.arange(30, 75, 4.0)]),
    "a slice is missing": np.delete(np.arange(0, 75, 2.5), 11),
}


@pytest.mark.parametrize("degrees", [0.0, 15.0, -22.0])
@pytest.mark.parametrize("heights", HEIGHTS)
def test_a_phantom_comes_out_of_tilted_and_uneven_slices_where_it_was(heights, degrees):
    """The gantry is tilted by `degrees` about x, the table moves along z: HU and mm against the
    formula.
    """
    if heights == "even" and degrees == 0:
        return
    orientation = np.array(tilted(degrees))
    positions = np.array([(-32.0, -45.0, z) for z in HEIGHTS[heights]])
    slices = np.stack([truth(grid(p, orientation, (110, 80), PIXEL)) for p in positions]).astype(
        np.float32
    )
    found = arrange(positions, orientation)
    assert ("tilted gantry" in found.note) == (degrees != 0)
    assert ("unevenly spaced" in found.note) == (heights != "even")
    voxels, corner = straighten(
        slices, positions[found.order], orientation, PIXEL, found.spacing, fill=-1024.0
    )
    normal = np.cross(orientation[:3], orientation[3:])
    points = np.stack(
        [
            grid(corner + k * found.spacing * normal, orientation, voxels.shape[1:], PIXEL)
            for k in range(len(voxels))
        ]
    )
    ones = straighten(np.ones_like(slices), positions, orientation, PIXEL, found.spacing, fill=0.0)[
        0
    ]
    scanned = ones > 0.999  # not the corners that no slice reached
    assert scanned.mean() > 0.6
    error = np.abs(voxels - truth(points))[scanned]
    curvature = 300 / 6.0**2  # HU/mm^2: the most that a line between two voxels is wrong
    gap = np.diff(positions[:, 2]).max() if heights != "even" else 0.0
    assert error.max() < curvature * (gap**2 + PIXEL[1] ** 2) / 8 * 1.1
    assert error.mean() < 0.5
    for ball in BALLS:
        near = np.linalg.norm(points - ball, axis=-1) < 7.0
        weight = (voxels - (-200 + 2.0 * points[..., 2]))[near]
        centre = (points[near] * weight[:, None]).sum(0) / weight.sum()
        assert np.linalg.norm(centre - ball) < 0.25


def test_a_tilted_series_is_read_as_hu_with_a_note(tmp_path):
    """U10: whole collections of head CT vanished."""
    orientation = np.array(tilted(13.5))
    positions = [(-18.0, -20.0, 2.5 * i) for i in range(16)]
    hu = (
        np.stack([truth(grid(np.array(p), orientation, (44, 40), (1.0, 1.0))) for p in positions])
        - 700
    )
    write_series(
        tmp_path,
        hu.round().astype(np.int16),
        positions,
        tuple(orientation),
        pixel=1.0,
        **{"0018_1120": "0"},
    )
    scan = read_found(Found(str(tmp_path), "1.2.3.4"))
    assert scan.note.startswith("tilted gantry (13.5 degrees)")
    assert scan.spacing == pytest.approx((2.5 * np.cos(np.radians(13.5)), 1.0, 1.0), rel=1e-4)
    shift = 15 * 2.5 * np.sin(np.radians(13.5))
    assert scan.voxels.shape == (16, 44 + int(np.ceil(shift)), 40)
    middle = scan.voxels[:, 12:40]
    assert -1000 < middle.min() < middle.max() < -300
    assert scan.voxels.min() == -1024


RESCALINGS = [
    [("0", "1"), ("-1024", "1")],  # the first slice is unsigned, where -824 is 64712
    [("-1024", "1"), ("-1024", "0.5")],  # the first one is whole, the others are not
    [("-1024", "0.25"), ("0", "1")],
]


@pytest.mark.parametrize("rescalings", RESCALINGS)
def test_slices_that_are_rescaled_differently_have_their_own_values(tmp_path, rescalings):
    stored = np.random.default_rng(0).integers(200, 2000, (10, 16, 18)).astype(np.uint16)
    used = [rescalings[min(number, 1)] for number in range(len(stored))]
    for number, (plane, (intercept, slope)) in enumerate(zip(stored, used, strict=True)):
        write_stored_slice(tmp_path / f"{number}.dcm", plane, number, intercept, slope)
    voxels, spacing = read_scan(Found(str(tmp_path), "1.2.3.4"))
    factors = np.array(used, np.float32)[:, :, None, None]
    np.testing.assert_allclose(voxels, stored * factors[:, 1] + factors[:, 0])
    assert spacing == (2.0, 1.5, 1.5)
    scan = read_found(Found(str(tmp_path), "1.2.3.4"))
    np.testing.assert_allclose(scan.affine[:3, 3], [10.0, 20.0, 100.0])


def test_only_series_whose_files_are_rescaled_differently_are_surveyed_again(tmp_path):
    """Answers of an earlier version on the others stay."""
    write_series(tmp_path / "same", ct_array((10, 16, 18)), straight(10))
    (same,) = series_in(tmp_path / "same").values()
    assert not same.each_by_itself
    assert same.signature(tmp_path / "same")[0] == 2
    assert replace(same, each_by_itself=True).signature(tmp_path / "same")[0] == EACH_VERSION > 2


def turned(sine: float) -> tuple[float, ...]:
    """An axial slice, turned a little about its normal."""
    cosine = float(np.sqrt(1 - sine**2))
    return (cosine, sine, 0.0, -sine, cosine, 0.0)


def edited(path: Path, *changes: tuple[bytes, bytes]) -> None:
    content = path.read_bytes()
    for old, new in changes:
        assert content.count(old) == 1
        content = content.replace(old, new)
    path.write_bytes(content)


def test_directions_and_pixels_that_differ_by_rounding_are_one_stack(tmp_path):
    """They were two, of every second slice each, where a rounded digit lay between them."""
    array, positions = ct_array((16, 20, 24)), straight(16)
    for half, (sine, pixel) in enumerate([(0.012499, 0.70315), (0.012501, 0.703151)]):
        written = write_series(
            tmp_path / f"half {half}", array[half::2], positions[half::2], turned(sine), pixel
        )
        for number, path in enumerate(sorted(written.iterdir(), reverse=True)):
            path.rename(tmp_path / f"{half}_{number}.dcm")
            uid = f"1.2.3.4.{number + 1}".encode()
            (tmp_path / f"{half}_{number}.dcm").write_bytes(
                (tmp_path / f"{half}_{number}.dcm")
                .read_bytes()
                .replace(uid, b"1.2.3.%d" % (5 + half) + uid[7:])
            )
    (series,) = series_in(tmp_path).values()
    assert (len(series.files), series.reason, series.note) == (16, "", "")
    np.testing.assert_array_equal(read_scan(Found(str(tmp_path), series.uid))[0], array)


def test_stacks_of_other_directions_stay_apart(tmp_path):
    for half, sine in enumerate((0.0, 0.01)):
        write_series(tmp_path, ct_array((10, 20, 24)), straight(10), turned(sine), names=f"n{half}")
    assert sorted(len(series.files) for series in series_in(tmp_path).values()) == [10, 10]


def test_slices_of_one_instance_uid_at_other_positions_are_kept(tmp_path):
    """As an anonymisation leaves them; a copy at the same position is the same slice."""
    stored = np.random.default_rng(0).integers(200, 2000, (10, 16, 18)).astype(np.uint16)
    for number, plane in enumerate(stored):
        path = tmp_path / f"{number}.dcm"
        write_stored_slice(path, plane, number, "-1024", "1")
        uid = element(0x00080018, "UI", f"1.2.3.4.{number + 1}")
        edited(path, (uid, element(0x00080018, "UI", "1.2.3.4.1")))
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    voxels, spacing = read_scan(Found(str(tmp_path), "1.2.3.4"))
    np.testing.assert_array_equal(voxels, stored - 1024.0)
    assert spacing == (2.0, 1.5, 1.5)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "-1024"), ("2", "0"), ("1", "0")])
def test_slices_of_which_some_have_no_rescaling_are_on_two_scales(tmp_path, slope, intercept):
    stored = np.random.default_rng(0).integers(200, 2000, (10, 16, 18)).astype(np.uint16)
    for number, plane in enumerate(stored):
        own = ("", "") if number == 4 else (intercept, slope)
        write_stored_slice(tmp_path / f"{number}.dcm", plane, number, *own)
    (series,) = series_in(tmp_path).values()
    if (slope, intercept) == ("1", "0"):  # what is absent changes nothing then
        assert series.reason == ""
        return
    assert series.reason.startswith(
        "has 1 of 10 slices without RescaleSlope or RescaleIntercept: their values"
    )


@pytest.mark.parametrize("signed", [0, 1])
def test_slices_of_other_voxel_types_have_their_own_values(tmp_path, signed):
    """Read as the type of the first slice, the values of the others had no place."""
    stored = np.random.default_rng(0).integers(0, 1500, (10, 16, 18)).astype(np.uint16)
    stored[1:] += 40000
    for number, plane in enumerate(stored):
        write_stored_slice(tmp_path / f"{number}.dcm", plane, number, "0", "1")
    short = [(0x00280101, 16, 12), (0x00280102, 15, 11), (0x00280103, 0, signed)]
    changes = [(unsigned_short(tag, a), unsigned_short(tag, b)) for tag, a, b in short]
    edited(tmp_path / "0.dcm", *changes)
    (series,) = series_in(tmp_path).values()
    assert series.each_by_itself
    voxels, _ = read_scan(Found(str(tmp_path), series.uid))
    np.testing.assert_array_equal(voxels, stored)


def test_mri_is_read_without_hu_and_its_slices_become_axial(tmp_path):
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    array = np.random.default_rng(0).integers(0, 900, (10, 20, 24), np.int16)
    positions = [(3.0 * i, -10.0, 40.0) for i in range(10)]
    tags = {"0028_1052": "0", "0028_1053": "1"}
    write_series(tmp_path, array, positions, sagittal, pixel=1.25, modality="MR", **tags)
    found = Found(str(tmp_path), "1.2.3.4")
    assert (
        inspect_scan(found).reason
        == "is MR, not CT; for images that are not CT: nnssl_pretrain --no-hu"
    )
    line = inspect_scan(found, in_hu=False)
    assert (line.kept, line.orientation, line.note) == (
        True,
        "PIR",
        "axes reordered from PIR to LPS",
    )
    voxels, spacing = read_scan(found)
    assert spacing == pytest.approx((1.25, 1.25, 3.0))
    # The slices run from left to right, their rows down from the head: z is turned, x becomes the
    # slices.
    np.testing.assert_array_equal(voxels, array.transpose(1, 2, 0)[::-1])
