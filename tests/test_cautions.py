"""What `nnssl_plan` and the doctor say of a dataset before its first training fails."""

from __future__ import annotations

import pytest
from synthetic_plans import DATASET, early, nnunet_plans

from nnssl import files, weights
from nnssl.plans.cautions import cautions, fold_to_train, training_command

NAMES = ("2d", "3d_fullres")
HU = {
    "mean": 90.0,
    "std": 140.0,
    "min": -900.0,
    "max": 1500.0,
    "percentile_00_5": -80.0,
    "percentile_99_5": 300.0,
}


def plans(channel: dict, scheme: str = "CTNormalization") -> dict:
    return nnunet_plans((scheme,)) | {"foreground_intensity_properties_per_channel": {"0": channel}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / DATASET).mkdir()
    files.write_json(tmp_path / DATASET / "dataset.json", {"numTraining": 5})
    return tmp_path / DATASET


def test_nothing_is_said_of_what_is_right(folder):
    assert cautions(folder, plans(HU)) == []
    assert fold_to_train(folder) == "0"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_too_few_cases_for_five_folds(folder, count):
    """U5: nnU-Net's five folds fail on fewer than five labelled cases."""
    files.write_json(folder / "dataset.json", {"numTraining": count})
    ((says, remedy),) = cautions(folder, plans(HU) | {"plans_name": "few", "pretrain_info": {}})
    assert f"{count} labelled case(s)" in says
    assert str(folder / "splits_final.json") in says
    assert remedy == f"nnUNetv2_train {DATASET} 3d_fullres all -tr SwinSSLTrainer -p few"
    assert fold_to_train(folder) == "all"


@pytest.mark.parametrize(
    ("fits", "configuration", "trainer"),
    [
        (["2d", "3d_fullres"], "3d_fullres", "SwinSSLTrainer"),
        (["2d"], "2d", "SwinSSLTrainer"),
        ([], "3d_fullres", "SwinScratchTrainer"),
    ],
)
def test_the_line_to_type_trains_what_the_checkpoint_fits(folder, fits, configuration, trainer):
    files.write_json(folder / "dataset.json", {"numTraining": 3})
    made = plans(HU)
    made["configurations"] = dict.fromkeys(NAMES, made["configurations"]["3d_fullres"])
    made |= {"plans_name": "few", "pretrain_info": {}, "nnssl_plan": {"checkpoint_fits": fits}}
    ((_, remedy),) = cautions(folder, made)
    assert remedy == f"nnUNetv2_train {DATASET} {configuration} all -tr {trainer} -p few"
    assert training_command(made, 7, "0").startswith(f"nnUNetv2_train 7 {configuration} 0 ")


def test_own_folds_are_enough(folder):
    files.write_json(folder / "dataset.json", {"numTraining": 3})
    files.write_json(folder / "splits_final.json", [])
    assert cautions(folder, plans(HU)) == []


def test_before_preprocessing_the_raw_dataset_says_how_many(folder, nnunet_env):
    (folder / "dataset.json").unlink()
    assert cautions(folder, plans(HU)) == []
    raw = nnunet_env["nnUNet_raw"] / DATASET
    raw.mkdir()
    files.write_json(raw / "dataset.json", {"numTraining": 3})
    assert len(cautions(folder, plans(HU))) == 1


SCALED = {
    "mean": 0.4,
    "std": 0.1,
    "min": 0.0,
    "max": 1.0,
    "percentile_00_5": 0.1,
    "percentile_99_5": 0.9,
}
SCORES = {
    "mean": 0.0,
    "std": 1.0,
    "min": -2.0,
    "max": 4.0,
    "percentile_00_5": -1.9,
    "percentile_99_5": 3.0,
}
GREY = {
    "mean": 120.0,
    "std": 30.0,
    "min": 0.0,
    "max": 255.0,
    "percentile_00_5": 40.0,
    "percentile_99_5": 240.0,
}


@pytest.mark.parametrize("values", [SCALED, SCORES, GREY])
def test_a_ct_without_hounsfield_units(folder, values):
    """U6: images scaled to 0..1 under the name CT were mapped as if they were HU."""
    ((says, remedy),) = cautions(folder, plans(values))
    assert f"channel 0 calls itself CT, but its labelled voxels are from {values['min']:g}" in says
    assert remedy.startswith(f"nnUNetv2_plan_and_preprocess -d {DATASET}")
    assert cautions(folder, plans(values, "ZScoreNormalization")) == []


def test_the_intensities_of_early_plans_are_read(folder):
    scaled = plans(HU | {"min": 0.0, "max": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0})
    assert cautions(folder, early(scaled)) == cautions(folder, scaled) != []


def test_plans_without_the_extremes_pass(folder):
    assert cautions(folder, plans({"mean": 90.0, "std": 140.0})) == []


@pytest.mark.parametrize(
    ("scheme", "info", "remedy"),
    [
        ("ZScoreNormalization", {"pt_used_patchsize": [48, 48, 48]}, "natural_tiny_3d"),
        ("ZScoreNormalization", {"pt_used_patchsize": [96, 96]}, "natural_tiny"),
        ("ZScoreNormalization", {"pt_used_patchsize": 48}, "natural_tiny_3d"),
        ("ZScoreNormalization", {"hu": None}, None),
        ("CTNormalization", {}, None),
        ("ZScoreNormalization", {"sha256": weights.RELEASED["smit_tiny"].sha256}, None),
    ],
    ids=["3d", "2d", "damaged", "no HU", "CT", "said of released weights"],
)
def test_an_encoder_of_ct_on_other_images(folder, scheme, info, remedy):
    made = plans(HU, scheme) | {"pretrain_info": {"hu": {"low": -1000}, "sha256": "0", **info}}
    if remedy is None:
        assert cautions(folder, made) == []
        return
    ((says, line),) = cautions(folder, made)
    assert "the checkpoint was pretrained on CT" in says
    assert line == f"nnssl_plan -d {DATASET} -c {remedy} --name NAME"


def test_plans_of_another_form_are_no_concern_here(folder):
    for info in (None, [], "x"):
        assert cautions(folder, plans(HU, "ZScoreNormalization") | {"pretrain_info": info}) == []
