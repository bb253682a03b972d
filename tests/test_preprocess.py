"""Preprocessing equals nnU-Net's own, can be killed at any moment, and never mixes two plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK
import torch
from synthetic_scans import ct_array, small_plan, straight, write_series, write_volume

from nnssl import phantoms
from nnssl.data import preprocess as preprocess_module
from nnssl.data.crops import Crops
from nnssl.data.plan import Plan, hu_policy
from nnssl.data.prepare import STALE, PrepareRequest, prepare
from nnssl.data.preprocess import BLOCK, body_blocks, forget_damaged, preprocess, store
from nnssl.data.survey import body_histogram
from nnssl.files import read_json, write_json
from nnssl.hu import HUPolicy
from nnssl.train.batches import collate


def nnunet_preprocessed(path: Path, plan: Plan) -> np.ndarray:
    """What stock nnU-Net makes of the file, with our plan's spacing and intensities as its own."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling = "resample_data_or_seg_to_shape"
    order = {"order": 3, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset001_Made",
        "plans_name": "made",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": _properties(plan.hu)},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "made",
                "architecture": {},
                "preprocessor_name": "DefaultPreprocessor",
                "spacing": list(plan.spacing),
                "patch_size": list(plan.crop),
                "normalization_schemes": ["CTNormalization" if plan.hu else "ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": resampling,
                "resampling_fn_seg": resampling,
                "resampling_fn_data_kwargs": {"is_seg": False, **order},
                "resampling_fn_seg_kwargs": {
                    "is_seg": True,
                    "order": 1,
                    "order_z": 0,
                    "force_separate_z": None,
                },
            }
        },
    }
    manager = PlansManager(plans)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "file_ending": ".nii.gz",
    }
    data, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(path)], None, manager, manager.get_configuration("3d_fullres"), dataset
    )
    return data


def _properties(hu: HUPolicy | None) -> dict:
    return (
        {"mean": hu.mean, "std": hu.std, "percentile_00_5": hu.low, "percentile_99_5": hu.high}
        if hu
        else {}
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((3.0, 2.0, 1.5), (2.0, 2.0, 2.0)),
        ((5.0, 1.0, 1.0), (2.5, 1.5, 1.5)),  # anisotropic: nnU-Net resamples slice by slice
        ((1.5, 1.5, 1.5), (6.0, 1.2, 1.2)),
        ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0)),
    ],
)
def test_stored_voxels_equal_nnunets_own_preprocessing(tmp_path, old, new):
    array = ct_array((18, 40, 44))
    path = write_volume(tmp_path / "raw" / "a.nii.gz", array, old)
    plan = small_plan([path], [array], old, spacing=new, crop=(16, 32, 32))
    assert preprocess(plan, tmp_path / "out", 0) == {}
    stored = blosc2.open(str(tmp_path / "out" / f"{plan.cases[0].id}.b2nd"), mode="r")
    assert stored.dtype == np.float16
    assert plan.hu.interior
    wanted = plan.hu.bend(nnunet_preprocessed(path, plan)).astype(np.float16)
    np.testing.assert_array_equal(stored[:], wanted)


def test_without_hu_each_scan_is_normalised_as_nnunet_does(tmp_path):
    array = np.random.default_rng(0).gamma(2.0, 150.0, (14, 40, 44)).astype(np.float32)
    array[:2], array[:, :, -6:] = 0, 0  # nnU-Net crops this away before it takes mean and sd
    path = write_volume(tmp_path / "raw" / "a.nii.gz", array, (2.0, 2.0, 2.0))
    plan = prepare(
        PrepareRequest(
            "made", tmp_path / "out", [path.parent], crop=(16, 32, 32), num_processes=0, in_hu=False
        )
    )
    assert plan == Plan.load(tmp_path / "out" / "plan.json")
    assert plan.hu is None
    stored = blosc2.open(str(tmp_path / "out" / f"{plan.cases[0].id}.b2nd"), mode="r")[:]
    wanted = nnunet_preprocessed(path, plan)
    np.testing.assert_allclose(stored[:, 2:, :, :-6], wanted, atol=1e-5, rtol=2**-11)
    crops = Crops(tmp_path / "out", plan, (32, 48, 48))
    assert crops.padding == 0
    (tmp_path / "out" / "plan.json").unlink()
    # looked at again: another question
    with pytest.raises(ValueError, match=r"is not in HU.*--no-hu"):
        prepare(PrepareRequest("made", tmp_path / "out", [path.parent], num_processes=0))


@pytest.mark.parametrize("fill", [-np.finfo(np.float32).max, 1e20])
def test_without_hu_an_extreme_fill_value_is_refused(tmp_path, fill):
    """It was stored as NaN or as 0 everywhere."""
    for number in range(2):
        array = ct_array((14, 20, 24), number).astype(np.float32) + 1100
        array[:, :4] = fill if number else array[:, :4]
        write_volume(tmp_path / "raw" / f"{number}.nii.gz", array)
    request = PrepareRequest(
        "made", tmp_path / "out", [tmp_path / "raw"], num_processes=0, in_hu=False
    )
    plan = prepare(request)
    assert [Path(case.source).name for case in plan.cases] == ["0.nii.gz"]
    left_out = read_json(tmp_path / "out" / "report.json")["scans"][1]
    assert "at most 1e+15 is allowed: such a fill value" in left_out["reason"]


def test_mean_and_std_without_hu_are_taken_in_double_precision():
    array = np.random.default_rng(0).normal(1e20, 1.0, (8, 9, 10)).astype(np.float32)
    array[0], array[1] = 4e20, -4e20
    scaled = small_plan([Path("a")], [ct_array()]).without_cases()
    found = replace(scaled, hu=None).standardise(array)
    wanted = (array.astype(float) - array.mean(dtype=float)) / array.std(dtype=float)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_chunks_and_codec_are_nnunets(tmp_path):
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    voxels = np.random.default_rng(0).normal(size=(1, 70, 80, 90)).astype(np.float32)
    for dtype, size in ((np.float16, 2), (np.float32, 4)):
        store(voxels, tmp_path / "a.b2nd", (32, 48, 48), dtype)
        stored = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
        sizes = comp_blosc2_params(voxels.shape, (32, 48, 48), size)
        assert (stored.blocks, stored.chunks) == sizes
        assert stored.schunk.cparams.codec == blosc2.Codec.LZ4HC
        np.testing.assert_array_equal(stored[:], voxels.astype(dtype))


@pytest.mark.parametrize(
    ("clip", "soft", "bone", "most"),
    [
        (None, 0.9, 1.2, 5.0),
        ((-1000.0, 3000.0), 0.3, 0.5, 1.5),
        ((-175.0, 250.0), 0.15, 0.15, 0.15),
    ],
)
def test_half_precision_moves_the_body_by_less_than_one_hu(clip, soft, bone, most):
    """Through the plan's map and back: up to soft tissue with contrast agent, bone, metal."""
    scans = [phantoms.phantom(seed, (48, 60, 64), (5.0, 6.0, 6.0)).hu for seed in range(2)]
    policy = hu_policy([body_histogram(scan.astype(np.float32)) for scan in scans], clip)
    hu = np.linspace(policy.low, policy.high, 99_999)
    error = np.abs(policy.restore(policy.normalise(hu).astype(np.float16).astype(float)) - hu)
    assert error[hu < 250].max() < soft
    assert error[hu < 950].max() < bone
    assert error.max() < most


def test_what_half_precision_cannot_hold_is_its_largest(tmp_path):
    voxels = np.full((1, 16, 16, 16), -1e6, np.float32)
    voxels[0, 0] = 1e6
    store(voxels, tmp_path / "a.b2nd", (16, 16, 16))
    stored = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")[:]
    assert (stored.min(), stored.max()) == (-65504, 65504)


def test_what_was_stored_in_full_precision_goes_on(tmp_path):
    """A collection that an earlier version began is completed in half precision."""
    raw, out = raw_folder(tmp_path / "raw", 3), tmp_path / "out"
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    first, second, _ = (out / f"{case.id}.b2nd" for case in plan.cases)
    store(blosc2.open(str(first), mode="r")[:], first, plan.crop, np.float32)
    note = read_json(first.with_suffix(".json"))
    write_json(first.with_suffix(".json"), {**note, "bytes": first.stat().st_size})
    second.unlink()
    before = times(out)
    assert prepare(PrepareRequest("made", out, [raw], num_processes=0)) == plan
    assert times(out)[first.name] == before[first.name]
    crops = Crops(out, plan, (8, 8, 8))
    kinds = {plan.cases[s["scan"]].id: s["crop"].dtype for s in (crops[i] for i in range(3))}
    assert [str(kinds[case.id])[6:] for case in plan.cases] == ["float32", "float16", "float16"]
    assert collate([crops[i] for i in range(3)])["crop"].dtype == torch.float32


def test_a_dicom_series_is_preprocessed_like_the_same_volume(tmp_path):
    array = ct_array((12, 24, 28))
    write_series(tmp_path / "raw" / "series", array, straight(12, 3.0), pixel=2.0)
    volume = write_volume(tmp_path / "raw" / "a.mha", array, (3.0, 2.0, 2.0))
    plan = prepare(
        PrepareRequest(
            "made",
            tmp_path / "out",
            [tmp_path / "raw"],
            spacing=(2, 2, 2),
            crop=(16, 16, 16),
            num_processes=0,
        )
    )
    stored = {
        c.source: blosc2.open(str(tmp_path / "out" / f"{c.id}.b2nd"), mode="r")[:]
        for c in plan.cases
    }
    np.testing.assert_array_equal(stored[str(volume)], stored[str(tmp_path / "raw" / "series")])


def test_what_reading_repairs_is_planned_and_stored_alike(tmp_path):
    """A tilted gantry, a missing slice and permuted axes: preprocessing sees the grid that the
    survey told the plan.
    """
    raw, array = tmp_path / "raw", ct_array((16, 24, 28))
    leaning = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.3)), float(-np.sin(0.3)))
    write_series(raw / "tilted", array, straight(16, 3.0), leaning, pixel=2.0)
    write_series(
        raw / "missing",
        np.delete(array, 5, 0),
        [p for i, p in enumerate(straight(16, 3.0)) if i != 5],
    )
    image = SimpleITK.PermuteAxes(SimpleITK.GetImageFromArray(array), [1, 2, 0])
    SimpleITK.WriteImage(image, str(raw / "sagittal.nii.gz"))
    plan = prepare(
        PrepareRequest(
            "made", tmp_path / "out", [raw], spacing=(3, 2, 2), crop=(16, 16, 16), num_processes=0
        )
    )
    assert [case.shape for case in plan.cases] == [(16, 24, 28), array.shape, (16, 31, 28)]
    for case in plan.cases:
        assert read_json(tmp_path / "out" / f"{case.id}.json")["original_shape"] == list(case.shape)


def test_body_blocks_are_the_share_of_body_in_each_block():
    body = ct_array((48, 40, 32)) > -500
    fractions = body_blocks(body, body.shape)
    for index in np.ndindex(fractions.shape):
        block = body[tuple(slice(i * BLOCK, (i + 1) * BLOCK) for i in index)]
        assert fractions[index] == pytest.approx(255 * block.mean(), abs=0.51)


def test_body_blocks_follow_the_resampling():
    body = np.zeros((10, 20, 40), bool)
    body[:5, :, 20:] = True
    np.testing.assert_array_equal(
        body_blocks(body, (64, 20, 32)).reshape(4, 2, 2)[:, 0], [[0, 255], [0, 255], [0, 0], [0, 0]]
    )
    assert body_blocks(np.ones((9, 9, 9), bool), (300, 16, 5)).min() == 255


def raw_folder(folder: Path, count: int = 4, shape=(14, 20, 24)) -> Path:
    for number in range(count):
        write_volume(folder / f"patient {number}" / "ct.nii.gz", ct_array(shape, number))
    return folder


def times(folder: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns
        for path in folder.iterdir()
        if path.suffix in (".b2nd", ".json")
    }


def test_the_second_run_repeats_nothing_and_a_damaged_case_is_made_again(tmp_path):
    raw, out = raw_folder(tmp_path / "raw"), tmp_path / "out"
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    before = times(out)
    assert len([name for name in before if name.endswith(".b2nd")]) == 4
    assert prepare(PrepareRequest("made", out, [raw], num_processes=0)) == plan
    after = times(out)
    after.pop("report.json"), before.pop("report.json")
    assert after == before
    damaged = out / f"{plan.cases[2].id}.b2nd"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (out / f"{plan.cases[1].id}.json").unlink()
    # without a source: what the plan lists
    assert prepare(PrepareRequest("made", out, num_processes=0)) == plan
    changed = {
        Path(name).stem for name, time in times(out).items() if before.get(name, time) != time
    }
    assert changed == {plan.cases[1].id, plan.cases[2].id}


RUN = """
import sys
from pathlib import Path
from nnssl.data.prepare import PrepareRequest, prepare
if __name__ == "__main__":
    prepare(PrepareRequest("made", Path(sys.argv[1]), [sys.argv[2]], spacing=(1.5, 1, 1),
                           crop=(32, 32, 32), num_processes=1))
"""


def test_a_flipped_bit_and_swapped_files_are_found_by_a_check_and_stored_again(tmp_path):
    raw, out, said = raw_folder(tmp_path / "raw"), tmp_path / "out", []
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    a, b, c = (out / f"{case.id}.b2nd" for case in plan.cases[:3])
    whole = {path.name: path.read_bytes() for path in (a, b, c)}
    flipped = bytearray(whole[a.name])
    flipped[len(flipped) // 2] ^= 1
    a.write_bytes(flipped)
    b.write_bytes(whole[c.name])
    c.write_bytes(whole[b.name])
    # another machine's part is its own to check
    assert forget_damaged(plan, out, 0, part_id=3, num_parts=4) == []
    prepare(PrepareRequest("made", out, [raw], num_processes=0, check=True, print_fn=said.append))
    assert any(line.startswith("3 preprocessed scans are damaged") for line in said)
    assert {path.name: path.read_bytes() for path in (a, b, c)} == whole
    prepare(PrepareRequest("made", out, [raw], num_processes=0, check=True, print_fn=said.append))
    assert said[-1] == "no preprocessed scan is damaged"


def test_after_kill_9_the_next_run_completes_and_repeats_nothing(tmp_path):
    raw, out = raw_folder(tmp_path / "raw", 12, (20, 40, 40)), tmp_path / "out"
    (tmp_path / "run.py").write_text(RUN)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", out, raw], stderr=subprocess.DEVNULL
    )
    while run.poll() is None and len(list(out.glob("ct_*.json"))) < 3:
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -9, "the run ended before it could be killed"
    time.sleep(0.5)  # its workers leave by themselves
    done = {
        name: when
        for name, when in times(out).items()
        if (out / name).with_suffix(".json").exists()
    }
    surveyed = times(out / "survey")
    assert 6 <= len([name for name in done if name.startswith("ct_")]) < 24
    prepare(
        PrepareRequest("made", out, [raw], spacing=(1.5, 1, 1), crop=(32, 32, 32), num_processes=0)
    )
    after = times(out)
    assert {name: after[name] for name in done if name != "report.json"} == {
        n: t for n, t in done.items() if n != "report.json"
    }
    assert len(list(out.glob("ct_*.b2nd"))) == len(list(out.glob("ct_*.json"))) == 12
    assert times(out / "survey") == surveyed
    assert len(Crops(out, Plan.load(out / "plan.json"))) == 12


def test_temporaries_of_dead_runs_are_swept_but_not_those_of_living_ones(tmp_path):
    raw, out = raw_folder(tmp_path / "raw", 1), tmp_path / "out"
    out.mkdir()
    for name, age in ((".tmp-old.b2nd", STALE + 9), (".tmp-new.b2nd", 0)):
        (out / name).touch()
        os.utime(out / name, (time.time() - age,) * 2)
    prepare(PrepareRequest("made", out, [raw], num_processes=0))
    assert [path.name for path in out.glob(".tmp-*")] == [".tmp-new.b2nd"]


def test_another_plan_is_noticed_and_not_mixed(tmp_path):
    raw, out = raw_folder(tmp_path / "raw", 2), tmp_path / "out"
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    with pytest.raises(ValueError, match=r"spacing .*got \(1, 1, 1\).*another name.*delete .*out"):
        prepare(PrepareRequest("made", out, [raw], spacing=(1, 1, 1), num_processes=0))
    other = Plan(plan.name, (1.0, 1.0, 1.0), plan.hu, plan.crop, plan.cases)
    with pytest.raises(ValueError, match="files of two plans are never mixed"):
        preprocess(other, out, 0)
    with pytest.raises(ValueError, match="files of two plans are never mixed"):
        Crops(out, other)[0]
    assert prepare(PrepareRequest("made", out, num_processes=0)) == plan


def test_parts_share_the_cases_and_together_do_all(tmp_path):
    raw, out = raw_folder(tmp_path / "raw", 3), tmp_path / "out"
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0, part_id=1, num_parts=2))
    assert {path.stem for path in out.glob("*.b2nd")} == {plan.cases[1].id}
    with pytest.raises(ValueError, match="1 of the 3 cases of the plan are preprocessed"):
        Crops(out, plan)
    assert (
        prepare(PrepareRequest("made", out, [raw], num_processes=0, part_id=0, num_parts=2)) == plan
    )
    assert len(Crops(out, plan)) == 3
    with pytest.raises(ValueError, match="-part_id must be 0 to 1"):
        prepare(PrepareRequest("made", out, [raw], num_processes=0, part_id=2, num_parts=2))


def test_a_scan_that_fails_is_said_and_left_out_and_tried_again(tmp_path, monkeypatch):
    raw, out = raw_folder(tmp_path / "raw", 3), tmp_path / "out"

    def fail(found, cache):
        if "patient 1" in found.path:
            raise MemoryError
        return read(found, cache)

    read = preprocess_module.read_scan
    monkeypatch.setattr(preprocess_module, "read_scan", fail)
    with pytest.warns(
        UserWarning, match=r"1 of 3 cases could not be preprocessed.*memory.*will try them again"
    ):
        plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    assert Crops(out, plan).cases == (plan.cases[0].id, plan.cases[2].id)
    monkeypatch.setattr(preprocess_module, "read_scan", read)
    assert prepare(PrepareRequest("made", out, [raw], num_processes=0)) == plan
    assert len(Crops(out, plan)) == 3
    assert not list(out.glob("*.failed.json"))


def halved(path: Path, hu: np.ndarray) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_intercept(path: Path, hu: np.ndarray) -> None:
    write_volume(path, hu + 1024)


def with_nan(path: Path, hu: np.ndarray) -> None:
    hu = hu.astype(np.float32)
    hu[5:] = np.nan
    write_volume(path, hu)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(halved, "cannot be read"), (without_intercept, "is not in HU"), (with_nan, "NaN")],
)
@pytest.mark.parametrize("sources", [True, False])
def test_a_scan_that_was_damaged_since_the_survey_is_not_stored(tmp_path, damage, reason, sources):
    raw, out, said = raw_folder(tmp_path / "raw", 3), tmp_path / "out", []
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    case = plan.cases[1]
    damage(Path(case.source), ct_array((14, 20, 24), 1))
    stored = out / f"{case.id}.b2nd"
    stored.write_bytes(stored.read_bytes()[::-1])
    with pytest.warns(UserWarning, match=f"1 of 3 cases could not be preprocessed.*{reason}"):
        prepare(
            PrepareRequest(
                *("made", out, [raw] if sources else []),
                num_processes=0,
                check=True,
                print_fn=said.append,
            )
        )
    assert any("will be preprocessed again if their raw scans are whole" in text for text in said)
    assert reason in read_json(out / f"{case.id}.failed.json")["reason"]
    assert len(Crops(out, plan)) == 2


def test_an_empty_or_unusable_folder_and_a_missing_plan_are_errors(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(ValueError, match=r"no scans in .*raw: searched for .*DICOM"):
        prepare(PrepareRequest("made", tmp_path / "out", [tmp_path / "raw"], num_processes=0))
    write_volume(tmp_path / "raw" / "mri.nii.gz", ct_array() + 1024)
    with pytest.raises(ValueError, match=r"none of the 1 scans(.|\n)*mri.nii.gz: is not in HU"):
        prepare(PrepareRequest("made", tmp_path / "out", [tmp_path / "raw"], num_processes=0))
    assert read_json(tmp_path / "out" / "report.json")["left_out"] == 1
    with pytest.raises(ValueError, match="with -i FOLDER or -d ID"):
        prepare(PrepareRequest("made", tmp_path / "out", num_processes=0))


def test_what_a_worker_gets_and_what_stays_in_memory_does_not_grow_with_the_collection(
    tmp_path, monkeypatch
):
    """A worker's task holds one case; the parent gets nothing back; no voxel stays in a survey
    line.
    """
    raw, out = raw_folder(tmp_path / "raw", 3), tmp_path / "out"
    plan = prepare(PrepareRequest("made", out, [raw], num_processes=0))
    sent = []
    monkeypatch.setattr(
        preprocess_module,
        "parallel_map",
        lambda work, items, *_: _noted(sent, [(work, item, work(item)) for item in items]),
    )
    preprocess(plan, tmp_path / "again", 0)
    assert [item.id for _, item, _ in sent] == [case.id for case in plan.cases]
    assert all(work.keywords["plan"].cases == () and result is None for work, _, result in sent)
    lines = json.loads((out / "report.json").read_text())["scans"]
    assert max(len(json.dumps(line)) for line in lines) < 1000


def _noted(sent: list, calls: list):
    sent.extend(calls)
    yield from ()
