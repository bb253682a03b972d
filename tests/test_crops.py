"""Crops: a pure function of (seed, index), read partially, with enough body, padded with air."""

from __future__ import annotations

import pickle
import subprocess
import sys

import blosc2
import numpy as np
import pytest
import torch
from synthetic_scans import ct_array, small_plan, write_volume

from nnssl.data.crops import Crops
from nnssl.data.plan import Case, Plan
from nnssl.data.positions import DRAWS, LEAST_BODY, Body
from nnssl.data.preprocess import BLOCK, body_blocks, preprocess
from nnssl.hu import HUPolicy

SHAPES = ((40, 70, 60), (20, 90, 50), (50, 30, 64), (48, 48, 48), (33, 65, 47))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple:
    """(folder, plan, {case: whole array}) of five scans of different size."""
    folder = tmp_path_factory.mktemp("stored")
    arrays = [ct_array(shape, seed) for seed, shape in enumerate(SHAPES)]
    paths = [write_volume(folder / "raw" / f"{i}.mha", array) for i, array in enumerate(arrays)]
    plan = small_plan(paths, arrays, spacing=(3.0, 2.0, 1.5), crop=(16, 32, 32))
    assert preprocess(plan, folder, 0) == {}
    whole = {
        case.id: blosc2.open(str(folder / f"{case.id}.b2nd"), mode="r")[0] for case in plan.cases
    }
    return folder, plan, whole


def same(a: dict, b: dict) -> bool:
    return torch.equal(a["crop"], b["crop"]) and (a["index"], a["rejected"]) == (
        b["index"],
        b["rejected"],
    )


def test_a_sample_has_the_agreed_form(stored):
    folder, plan, _ = stored
    crops = Crops(folder, plan, (16, 32, 32), seed=3)
    sample = crops[7]
    assert set(sample) == {"crop", "index", "scan", "rejected", "start", "size"}
    assert sample["crop"].dtype == torch.float16
    assert sample["crop"].shape == (1, 16, 32, 32)
    assert (sample["index"], type(sample["rejected"])) == (7, int)
    assert len(crops) == 5
    assert Crops(folder, plan).shape == plan.crop


@pytest.mark.parametrize("shape", [(16, 24, 24), (60, 32, 80), (24, 32), (80, 80)])
def test_a_sample_knows_where_in_its_scan_it_lies(stored, shape):
    folder, plan, whole = stored
    crops = Crops(folder, plan, shape, seed=4)
    for index in range(10):
        sample = crops[index]
        scan = whole[crops.cases[sample["scan"]]]
        start, size = sample["start"], sample["size"]
        assert (start.dtype, start.shape) == (torch.int64, (len(shape),))
        assert size.tolist() == list(scan.shape[3 - len(shape) :])
        for offset, n, own in zip(start.tolist(), shape, size.tolist(), strict=True):
            assert 0 <= offset <= own - n if own > n else offset == (own - n) // 2
        if len(shape) == 3:
            low = [max(0, s) for s in start.tolist()]
            part = scan[
                tuple(slice(a, s + n) for a, s, n in zip(low, start.tolist(), shape, strict=True))
            ]
            lead = [a - s for a, s in zip(low, start.tolist(), strict=True)]
            inner = tuple(slice(a, a + n) for a, n in zip(lead, part.shape, strict=True))
            np.testing.assert_array_equal(sample["crop"][0].numpy()[inner], part)


def test_a_sample_depends_on_seed_and_index_alone(stored):
    folder, plan, _ = stored
    crops = Crops(folder, plan, (16, 24, 24), seed=1)
    indices = [11, 3, 3, 0, 10_000_000, 12]
    first = [crops[index] for index in indices]
    again = Crops(folder, plan, (16, 24, 24), seed=1)
    assert all(
        same(one, again[index]) for one, index in zip(first[::-1], indices[::-1], strict=True)
    )
    torch.rand(1), np.random.rand(1)
    assert same(pickle.loads(pickle.dumps(crops))[3], first[1])
    assert not torch.equal(Crops(folder, plan, (16, 24, 24), seed=2)[3]["crop"], first[1]["crop"])
    assert not torch.equal(crops[8]["crop"], first[1]["crop"])


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_and_their_number_change_nothing(stored, start, workers):
    folder, plan, _ = stored
    crops = Crops(folder, plan, (16, 24, 24), seed=5)
    crops[0]  # as after a first use in the parent
    options = {
        "sampler": range(4, 14),
        "batch_size": 3,
        "num_workers": workers,
        "multiprocessing_context": start,
    }
    batches = list(torch.utils.data.DataLoader(crops, **options))
    assert torch.equal(
        torch.cat([batch["crop"] for batch in batches]),
        torch.stack([crops[i]["crop"] for i in range(4, 14)]),
    )
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(4, 14))


def test_every_epoch_has_each_case_once_in_an_order_of_its_own(stored):
    folder, plan, _ = stored
    crops = Crops(folder, plan, seed=0)
    orders = [[crops[epoch * 5 + index]["scan"] for index in range(5)] for epoch in range(6)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 3


def find(crop: np.ndarray, whole: np.ndarray) -> bool:
    """True when `crop` is a box of `whole` (its first voxel is tried at every place where it
    fits).
    """
    for start in np.argwhere(whole == crop[0, 0, 0]):
        box = whole[tuple(slice(a, a + n) for a, n in zip(start, crop.shape, strict=True))]
        if box.shape == crop.shape and np.array_equal(box, crop):
            return True
    return False


@pytest.mark.parametrize("shape", [(16, 24, 24), (24, 32)])
def test_a_crop_is_a_box_of_its_scan(stored, shape):
    folder, plan, whole = stored
    crops = Crops(folder, plan, shape, seed=0)
    for index in range(8):
        crop = crops[index]["crop"].numpy()
        assert crop.shape == (1, *shape)
        assert find(
            crop.reshape((3 - len(shape)) * (1,) + shape), whole[crops.cases[crops[index]["scan"]]]
        )


def test_a_scan_smaller_than_the_crop_lies_in_the_middle_of_air(stored):
    folder, plan, whole = stored
    crops = Crops(folder, plan, (60, 100, 70), seed=0)
    air = np.float16(plan.hu.normalise(np.float32(plan.hu.low)))
    for index in range(5):
        crop = crops[index]["crop"][0].numpy()
        scan = whole[crops.cases[crops[index]["scan"]]]
        inner = tuple(
            slice(-((n - c) // 2), -((n - c) // 2) + n)
            for n, c in zip(scan.shape, crop.shape, strict=True)
        )
        np.testing.assert_array_equal(crop[inner], scan)
        outside = np.ones(crop.shape, bool)
        outside[inner] = False
        assert np.all(crop[outside] == air)


def test_partly_padded_crops_slide_along_the_other_axes(stored):
    folder, plan, whole = stored
    crops = Crops(folder, plan, (64, 24, 24), seed=0)
    crop, scan = crops[0]["crop"][0].numpy(), whole[crops.cases[crops[0]["scan"]]]
    lead = -((scan.shape[0] - 64) // 2)
    assert find(crop[lead : lead + scan.shape[0]], scan)


def test_share_equals_the_share_of_body_voxels_in_aligned_boxes():
    body = ct_array((64, 64, 64)) > -500
    blocks = body_blocks(body, body.shape).astype(np.float32)
    there = Body(blocks, np.array(body.shape), BLOCK)
    for start in ([0, 0, 0], [16, 32, 0], [32, 32, 32]):
        box = body[tuple(slice(a, a + 32) for a in start)]
        fraction = there.fraction_in(np.array(start), np.array([32, 32, 32]))
        assert fraction == pytest.approx(box.mean(), abs=0.01)
    whole = there.fraction_in(np.array([-10, -10, -10]), np.array([90, 90, 90]))
    assert whole == pytest.approx(body.sum() / 90**3, abs=0.01)  # padding is no body


@pytest.fixture(scope="module")
def corner(tmp_path_factory) -> tuple:
    """One scan of 96^3 with its body in one corner, an eighth of the volume."""
    folder = tmp_path_factory.mktemp("corner")
    array = np.full((96, 96, 96), -1000, np.int16)
    array[:48, :48, :48] = 100
    array[48, :48, :48] = -600  # between air and skin, without which it is no CT
    path = write_volume(folder / "raw.mha", array, (1.0, 1.0, 1.0))
    case = Case("corner", str(path), "", array.shape, (1.0, 1.0, 1.0))
    plan = Plan("made", case.spacing, HUPolicy(-1000.0, 1000.0, 0.0, 500.0), (32, 32, 32), (case,))
    preprocess(plan, folder, 0)
    return folder, plan


def test_positions_with_too_little_body_are_drawn_again_and_counted(corner):
    folder, plan = corner
    crops = Crops(folder, plan, (32, 32, 32), seed=0)
    samples = [crops[index] for index in range(60)]
    fractions = np.array([(sample["crop"] > 0).float().mean() for sample in samples])
    rejected = np.array([sample["rejected"] for sample in samples])
    accepted = fractions[rejected < DRAWS]
    assert (accepted > LEAST_BODY - 0.01).all()
    assert np.median(accepted) > 0.5
    assert rejected.max() <= DRAWS
    assert 0.2 < rejected.mean() < 6


def test_positions_spread_over_the_body(corner):
    """The body is seen up to the corner of the scan, and the crops' places do not pile up there."""
    folder, plan = corner
    crops = Crops(folder, plan, (32, 32, 32), seed=0)
    starts = np.array([crops[index]["start"].tolist() for index in range(300)])
    counts = np.zeros((48, 48, 48), int)
    for z, y, x in starts:
        counts[z : z + 32, y : y + 32, x : x + 32] += 1
    assert counts[4:, 4:, 4:].min() > 0
    assert (starts == 0).mean() < 0.2
    assert len(np.unique(starts, axis=0)) > 290


def test_a_rejected_position_reads_nothing(corner, monkeypatch):
    folder, plan = corner
    opened = []
    original = blosc2.open
    monkeypatch.setattr(
        "nnssl.data.crops.blosc2.open", lambda *a, **k: opened.append(a) or original(*a, **k)
    )
    crops = Crops(folder, plan, (32, 32, 32), seed=0)
    assert sum(crops[index]["rejected"] for index in range(20)) > 0
    assert len(opened) == 20


def test_scans_of_air_end_with_the_best_of_the_draws(corner):
    folder, plan = corner
    sample = Crops(folder, plan, (96, 96, 96), seed=0)[0]  # the whole scan: an eighth is body
    assert sample["rejected"] == DRAWS
    assert sample["crop"].shape == (1, 96, 96, 96)


def test_bad_shapes_and_indices_are_refused(stored, tmp_path):
    folder, plan, _ = stored
    for shape in ((32,), (1, 32, 32, 32), (0, 32, 32)):
        with pytest.raises(ValueError, match="two or three axes"):
            Crops(folder, plan, shape)
    with pytest.raises(IndexError, match="start at 0, got -1"):
        Crops(folder, plan)[-1]
    with pytest.raises(ValueError, match=r"0 of the 5 cases .* run nnssl_pretrain"):
        Crops(tmp_path / "absent", plan)


def test_training_imports_no_image_library_and_no_nnunet(stored):
    folder, plan, _ = stored
    plan.save(folder / "plan.json")
    script = (
        "import sys; from nnssl.data.plan import Plan; from nnssl.data.crops import Crops; "
        f"print(Crops({str(folder)!r}, "
        f"Plan.load({str(folder / 'plan.json')!r}))[3]['crop'].shape); sys.exit(any(name in "
        "sys.modules for name in ('SimpleITK', 'nnunetv2', 'nibabel', 'skimage')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert "[1, 16, 32, 32]" in run.stdout
    assert Plan.load(folder / "plan.json") == plan
