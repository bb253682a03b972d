"""Surface Dice and HD95 against MONAI's, closed forms, and a validated fold as nnU-Net leaves
it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from synthetic_scans import write_volume

from nnssl import files
from nnssl.study.measurement import segmentation
from nnssl.study.rows import CaseRow

SPACING = (3.0, 1.5, 1.0)


def blobs(seed: int, shape: tuple[int, ...] = (12, 20, 24)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2) > 0.05


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask]))[None].float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("tolerance", [0.5, 2.0])
def test_equal_to_monai(seed, dims, tolerance):
    shape, spacing = (12, 20, 24)[-dims:], SPACING[-dims:]
    prediction, truth = blobs(seed, shape), blobs(seed + 10, shape)
    ours = segmentation.surfaces(prediction, truth, spacing, tolerance)
    pair = one_hot(prediction), one_hot(truth)
    dice = compute_surface_dice(*pair, class_thresholds=[tolerance], spacing=spacing)
    hd95 = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)
    assert ours.surface_dice == pytest.approx(float(dice), abs=1e-5)
    assert ours.hd95 == pytest.approx(float(hd95), abs=1e-4)


def test_a_2d_image_is_no_volume_of_one_slice():
    """nnU-Net reads one as [1, Y, X], some with a spacing of 999 mm for the axis that is none."""
    masks = blobs(0, (20, 24)), blobs(1, (20, 24)), np.zeros((20, 24), bool)
    for pair in ((masks[0], masks[1]), (masks[0], masks[2])):
        read = [mask[None] for mask in pair]
        assert segmentation.surfaces(*read, (999.0, 1.5, 1.0), 2.0) == segmentation.surfaces(
            *pair, (1.5, 1.0), 2.0
        )


def test_closed_forms():
    plate = np.zeros((10, 8, 8), bool)
    plate[2] = True
    moved = np.roll(plate, 3, axis=0)
    assert segmentation.surfaces(plate, plate, SPACING, 0.1) == segmentation.Surfaces(1.0, 0.0)
    # 3 slices of 3 mm
    assert segmentation.surfaces(plate, moved, SPACING, 8.9) == segmentation.Surfaces(0.0, 9.0)
    assert segmentation.surfaces(plate, moved, SPACING, 9.0) == segmentation.Surfaces(1.0, 9.0)
    nothing = np.zeros_like(plate)
    assert segmentation.surfaces(nothing, nothing, SPACING, 1.0) == segmentation.Surfaces(
        None, None
    )
    diagonal = math.dist((30.0, 12.0, 8.0), (0, 0, 0))
    for pair in ((plate, nothing), (nothing, plate)):
        assert segmentation.surfaces(*pair, SPACING, 1.0) == segmentation.Surfaces(0.0, diagonal)


def validated(fold, labels: dict, metrics: dict, prediction: np.ndarray, truth: np.ndarray):
    """A fold folder with one case, as nnU-Net leaves it."""
    entry = {
        "prediction_file": str(write_volume(fold / "validation" / "a.nii.gz", prediction, SPACING)),
        "reference_file": str(write_volume(fold / "truth" / "a.nii.gz", truth, SPACING)),
        "metrics": {key: {"Dice": dice} for key, dice in metrics.items()},
    }
    (fold / "validation" / "summary.json").write_text(
        files.json.dumps({"metric_per_case": [entry]})
    )
    dataset = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    files.write_json(fold.parent / "dataset.json", dataset)
    files.write_json(fold.parent / "plans.json", {"configurations": {}})
    return fold


def test_rows_of_a_validated_fold_with_an_ignored_label(tmp_path):
    truth = np.zeros((6, 10, 10), np.uint8)
    truth[2:4, 2:6, 2:6] = 1
    prediction = truth.copy()
    prediction[5, 8:, 8:] = 1
    truth[5] = 3  # ignored, so that the wrong voxels there do not count
    labels = {"background": 0, "liver": 1, "kidney": 2, "ignore": 3}
    fold = validated(tmp_path / "fold_7", labels, {"1": 1.0, "2": math.nan}, prediction, truth)
    liver = {"label": "liver", "dice": 1.0, "surface_dice": 1.0, "hd95": 0.0}
    assert segmentation.case_rows("r", fold, 1.0) == [
        CaseRow(run="r", case="a", **liver),
        CaseRow(run="r", case="a", label="kidney"),
    ]


def test_regions_are_measured_as_nnunet_evaluates_them(tmp_path):
    truth = np.zeros((6, 10, 10), np.uint8)
    truth[2:4, 2:6, 2:6] = 1
    prediction = np.where(truth == 1, 2, 0).astype(np.uint8)
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    fold = validated(tmp_path / "fold_7", labels, {"(1, 2)": 1.0, "(2,)": 0.0}, prediction, truth)
    whole, core = segmentation.case_rows("r", fold, 1.0)
    assert (whole.label, whole.surface_dice, whole.hd95) == ("whole", 1.0, 0.0)
    assert (core.label, core.dice, core.surface_dice) == ("core", 0.0, 0.0)
    assert core.hd95 == pytest.approx(math.dist((18, 15, 10), (0, 0, 0)))
