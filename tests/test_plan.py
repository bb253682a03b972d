"""The plan: HU policy, spacing, crop, case names, and its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from synthetic_scans import Line, ct_array

from nnssl.data.plan import (
    Plan,
    case_id,
    default_crop,
    hu_policy,
    make_plan,
    median_spacing,
    resampled_shape,
)
from nnssl.data.survey import body_histogram
from nnssl.hu import HUPolicy
from nnssl.types import BODY_HU


def plan_of(shapes=((100, 300, 300),), spacings=((2.0, 1.0, 1.0),), **options) -> Plan:
    lines = [
        Line(f"/raw/{i}.nrrd", *both) for i, both in enumerate(zip(shapes, spacings, strict=True))
    ]
    return make_plan(
        "made", lines, [body_histogram(ct_array().astype(np.float32))] * len(lines), **options
    )


def test_hu_policy_has_mean_0_and_std_1_over_the_pooled_body_voxels_of_equal_scans():
    scans = [ct_array(seed=seed).astype(np.float32) for seed in range(3)]
    size = min((scan > BODY_HU).sum() for scan in scans)  # equal weights: as many voxels of each
    bodies = [np.sort(scan[scan > BODY_HU])[-size:] for scan in scans]
    policy = hu_policy(body_histogram(body) for body in bodies)
    normalised = policy.normalise(np.rint(np.concatenate(bodies)).astype(np.float64))
    assert normalised.mean() == pytest.approx(0.0, abs=1e-3)
    assert normalised.std() == pytest.approx(1.0, abs=1e-3)
    assert (policy.low, policy.high) == (-1000.0, 3000.0)


@pytest.mark.parametrize(
    "bodies",
    [
        {-100: 30, 40: 55, 300: 14, 1500: 1},
        {-100: 40, 50: 60},
        {-480: 30, -80: 20, 45: 45, 900: 5},
        {7: 1},
    ],
    ids=["head", "abdomen", "chest", "one value"],
)
def test_soft_tissue_gets_most_of_the_output_and_every_tissue_a_part(bodies):
    histogram = np.zeros(3501)
    for hu, voxels in bodies.items():
        histogram[hu + 500] = voxels
    policy = hu_policy([histogram])
    assert policy == hu_policy([histogram * 3])
    assert len(policy.knots) == 8
    ends = np.array([-1000, -500, -150, 250, 1000, 3000], np.float64)
    parts = np.diff(policy.normalise(ends)) / np.ptp(policy.normalise(ends))
    assert parts.min() > 0.1
    assert parts[2] > 0.3  # a tenth of the HU
    assert parts[2] == max(parts)


def test_every_scan_weighs_the_same_whatever_its_size():
    small, large = np.full(10, 0.0), np.full(100_000, 200.0)
    normalised = hu_policy([body_histogram(small), body_histogram(large)]).normalise(
        np.array([0.0, 200.0])
    )
    np.testing.assert_allclose(normalised, [-1, 1], atol=1e-5)


def test_hu_policy_stays_in_bounds():
    metal = np.r_[np.full(50, 40.0), np.full(50, 20_000.0)]
    policy = hu_policy([body_histogram(metal)])
    assert (policy.low, policy.high) == (-1000.0, 3000.0)
    assert hu_policy([body_histogram(np.full(10, 7.0))]).std >= 1.0


def test_histogram_counts_whole_hu_of_the_body():
    counts = body_histogram(
        np.array([-2000, -500, -499.6, -499.4, 0.4, 0.6, 3000, 9999], np.float32)
    )
    assert counts.sum() == 6
    assert (counts[0], counts[1], counts[500], counts[501], counts[-1]) == (1, 1, 1, 1, 2)


def test_spacing_is_the_median_of_each_axis_within_sane_bounds():
    assert median_spacing([(1, 0.7, 0.9), (3, 0.8, 0.9), (5, 2, 0.9)]) == (3.0, 0.8, 0.9)
    assert median_spacing([(10, 0.1, 1)]) == (5.0, 0.5, 1.0)


def test_resampled_shape_is_nnunets():
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    generator = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(int(n) for n in generator.integers(8, 500, 3))
        old, new = (tuple(generator.uniform(0.3, 6, 3)) for _ in range(2))
        assert resampled_shape(shape, old, new) == tuple(compute_new_shape(shape, old, new))


def test_default_crop_leaves_room_in_the_median_scan():
    assert default_crop([(300, 300, 300)]) == (96, 96, 96)
    assert default_crop([(90, 60, 20), (95, 71, 30), (200, 80, 40)]) == (64, 48, 32)
    assert default_crop([(94, 71, 121)]) == (64, 48, 64)


def test_overrides_win():
    plan = plan_of(spacing=(2, 2, 2), crop=(32, 48, 64))
    assert plan.spacing == (2.0, 2.0, 2.0)
    assert plan.crop == (32, 48, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": (96, 96, 90)}, "multiples of 16"),
        ({"crop": (96, 96)}, "three positive multiples"),
        ({"crop": (0, 16, 16)}, "positive"),
        ({"spacing": (1.0, 1.0)}, "three numbers"),
        ({"spacing": (1.0, 1.0, -1.0)}, "0.05 to 15"),
        ({"spacing": (1.0, 1.0, float("nan"))}, "0.05 to 15"),
    ],
)
def test_impossible_overrides_are_refused_with_what_is_possible(options, words):
    with pytest.raises(ValueError, match=words):
        plan_of(**options)


def test_plan_file_round_trip_and_fingerprint(tmp_path):
    plan = plan_of()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert (
        Plan.load(tmp_path / "plan.json").fingerprint == plan.fingerprint == plan_of().fingerprint
    )
    others = (plan_of(spacing=(2, 2, 2)), plan_of(crop=(32, 32, 32)), plan_of(((99, 300, 300),)))
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_plans_from_before_there_were_knots_load_with_the_same_fingerprint_and_numbers(tmp_path):
    case = {
        "id": "a_1",
        "source": "/raw/a.nii",
        "series": "",
        "shape": [9, 8, 7],
        "spacing": [2.0, 1.0, 1.0],
    }
    old = {
        "name": "made",
        "spacing": [2.0, 1.0, 1.0],
        "hu": {"low": -447.0, "high": 1394.0, "mean": 40.25, "sd": 254.5},
        "crop": [32, 32, 32],
        "cases": [case],
        "format_version": 1,
        "fingerprint": "64777397a83d",
    }
    (tmp_path / "plan.json").write_text(json.dumps(old))
    plan = Plan.load(tmp_path / "plan.json")
    hu = np.linspace(-1200, 3300, 999, dtype=np.float32)
    np.testing.assert_array_equal(plan.hu.normalise(hu), (hu.clip(-447, 1394) - 40.25) / 254.5)
    assert plan.padding == -1.9145382642745972
    plan.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == old


def test_an_edited_plan_or_one_of_another_version_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    plan_of().save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "spacing": [1, 1, 1]}))
    with pytest.raises(ValueError, match="edited after it was written"):
        Plan.load(path)
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(ValueError, match="plan format 99, this version of nnssl reads 1"):
        Plan.load(path)


def test_cases_do_not_depend_on_the_order_in_which_scans_are_found():
    lines = [Line(f"/raw/{name}.nii", (20, 20, 20), (1.0, 1.0, 1.0)) for name in "cab"]
    histograms = [np.ones(3501)] * 3
    assert make_plan("x", lines, histograms) == make_plan("x", lines[::-1], histograms)


def test_case_ids_are_unlike_and_safe_file_names():
    paths = [
        "/a/ct.nii.gz",
        "/b/ct.nii.gz",
        "/a/../../etc/passwd",
        "/a/Jürgen ß?.nrrd",
        "/a/" + "x" * 300,
        "/a/..",
        "/",
    ]
    ids = [case_id(path) for path in paths] + [
        case_id("/dicom", "1.2.3"),
        case_id("/dicom", "1.2.4"),
    ]
    assert len(set(ids)) == len(ids)
    assert all(
        name.replace("_", "").isalnum() and name.isascii() and len(name) < 60 for name in ids
    )
    assert case_id("/a/ct.nii.gz").startswith("ct_")
    assert case_id("/a/ct.nii.gz") == ids[0]


@pytest.mark.parametrize("clip", [None, (-175, 250)])
def test_normalise_is_the_lines_between_the_knots_and_restore_undoes_it(clip):
    policy = hu_policy([body_histogram(ct_array().astype(np.float32))], clip)
    hu = np.linspace(policy.low - 100, policy.high + 100, 9999, dtype=np.float32)
    expected = np.interp(hu.astype(np.float64), *np.transpose(policy.knots))
    for values in (hu, torch.from_numpy(hu)):
        normalised = policy.normalise(values)
        assert normalised.dtype == values.dtype
        np.testing.assert_allclose(np.asarray(normalised), expected, atol=1e-5)
        np.testing.assert_allclose(
            np.asarray(policy.restore(normalised)), hu.clip(policy.low, policy.high), atol=0.02
        )
    assert HUPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize("interior", [[(0, 0), (-5, 5)], [(0, 5), (1, 5)], [(-100, 0)], [(0, 100)]])
def test_a_map_that_does_not_rise_is_refused(interior):
    with pytest.raises(ValueError, match="knots that rise from low to high"):
        HUPolicy(-100, 100, 0, 1, interior)


def test_hu_range_can_be_asked_for():
    """For lungs: the ends are those asked for, mean and std are still the body's."""
    histogram = np.zeros(3501)
    histogram[[500, 700]] = 3, 1  # 0 and 200 HU
    policy = hu_policy([histogram], clip=(-1000, 100))
    assert (policy.low, policy.high) == (-1000, 100)
    assert policy.mean == pytest.approx((3 * 0 + 1 * 100) / 4)
    assert policy.std == pytest.approx(np.sqrt(3) / 4 * 100, rel=1e-4)
    assert policy.interior == ()
    with pytest.raises(ValueError, match="must rise"):
        hu_policy([histogram], clip=(100, -100))


def test_no_scan_resamples_to_nothing():
    """nnU-Net's rule rounds half a millimetre at 5 mm to 0 slices."""
    assert resampled_shape((8, 20, 20), (0.05, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 20, 20)
