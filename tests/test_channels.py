"""`--channels`: of a raw dataset's several channels each is a scan by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl import parsers
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.raw_datasets import chosen_channels
from nnssl.data.scans import find_scans, read_found
from nnssl.train import prepared_scans
from nnssl.train.places import data_folder
from nnssl.train.pretrain_options import Options

NAMES = {"0": "T1", "1": "T2", "2": "CT"}


@pytest.fixture
def raw(nnunet_env) -> Path:
    """Two cases of three channels, each constant but for noise: channel n around 100 (n + 1)."""
    folder, chance = nnunet_env["nnUNet_raw"] / "Dataset905_Many", np.random.default_rng(0)
    (folder / "imagesTr").mkdir(parents=True)
    for case in "ab":
        for number in range(3):
            voxels = chance.normal(100 * (number + 1), 5, (20, 24, 22)).astype(np.float32)
            image = SimpleITK.GetImageFromArray(voxels)
            path = folder / "imagesTr" / f"{case}_{number:04d}.nii.gz"
            SimpleITK.WriteImage(image, str(path))
    content = {"channel_names": NAMES, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 2}))
    return folder


@pytest.mark.parametrize(
    ("requested", "numbers"), [((0,), [1]), ((1,), [2]), ((0, 1), [1, 2]), (None, [1, 2, 3])]
)
def test_each_channel_asked_for_is_a_scan_by_itself(raw, requested, numbers):
    found = find_scans([], [raw], requested)
    means = [round(float(read_found(one).voxels.mean()) / 100) for one in found]
    assert means == numbers * 2
    assert [Path(one.path).name[0] for one in found] == sorted("ab" * len(numbers))


def test_each_is_normalised_by_its_own_mean_and_sd(raw, tmp_path):
    plan = prepare(PrepareRequest(
        "many", tmp_path / "out", (), [raw], num_processes=0, in_hu=False, channels=(0, 1),
        crop=(16, 16, 16),
    ))  # fmt: skip
    assert len(plan.cases) == 4
    from nnssl.data.crops import Crops

    crops = Crops(tmp_path / "out", plan)
    for index in range(4):
        crop = crops[index]["crop"]
        assert abs(float(crop.mean())) < 0.1
        assert 0.9 < float(crop.std()) < 1.1


def test_a_channel_that_is_not_there_is_an_error_that_lists_them(raw):
    message = r"no channel 4; its dataset.json names 0 \(T1\), 1 \(T2\), 2 \(CT\). --channels"
    with pytest.raises(ValueError, match=message):
        find_scans([], [raw], (0, 4))
    assert chosen_channels(raw, None) == {0: "T1", 1: "T2", 2: "CT"}


def test_channels_in_one_file_cannot_be_taken_apart(raw):
    for path in (raw / "imagesTr").glob("*_000[12].nii.gz"):
        path.unlink()
    with pytest.raises(ValueError, match=r"case a has 1 file\(s\), but channel 1 was requested"):
        find_scans([], [raw], (1,))


@pytest.mark.parametrize(
    ("channels", "in_hu"), [((0,), False), ((0, 1), False), ((2,), True), ((1, 2), None)]
)
def test_ct_and_others_are_told_apart_by_the_channels_names(raw, channels, in_hu):
    options = Options("smit", dataset_ids=("905",), channels=channels)
    if in_hu is not None:
        assert prepared_scans.are_in_hu(options, [raw]) == in_hu
        return
    with pytest.raises(ValueError, match="channel 1 of Dataset905_Many is not CT"):
        prepared_scans.are_in_hu(options, [raw])


def test_the_command_says_which_and_the_collection_is_named_after_them(nnunet_env):
    parse = parsers.pretrain_parser().parse_args
    assert parse(["-d", "5"]).channels == (0,)
    assert parse(["-d", "5", "--channels", "0", "2"]).channels == [0, 2]
    assert parse(["-d", "5", "--channels", "all"]).channels == [None]
    with pytest.raises(SystemExit):
        parse(["-d", "5", "--channels", "-1"])
    names = [
        data_folder(Options("smit", dataset_ids=("5",), channels=channels))[0]
        for channels in ((0,), (0, 2), None)
    ]
    assert names == ["5", "5_channels_0_2", "5_channels_all"]


def test_channels_are_those_of_datasets(nnunet_env, tmp_path):
    options = Options("smit", sources=(tmp_path,), channels=(1,))
    with pytest.raises(ValueError, match="in a folder of -i every file is a separate scan"):
        prepared_scans.prepare_scans(options, "x", tmp_path, print)
