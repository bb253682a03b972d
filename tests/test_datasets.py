"""Every kind of dataset in every configuration, through nnU-Net's commands: plan, train, resume,
validate, predict.

A row of `TABLE` is a kind of dataset. Pools of processes are threads here; test_nnunet.py has the
processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command, nnssl_plan, no_plots, pools_of_threads
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_raw import IGNORE, TRAINING, UNSEEN, Raw, geometry, voxels, write_raw

from nnssl import files
from nnssl.types import NAME

DATASET, ID = "Dataset905_Kind", 905
PRETRAINED, SCRATCH = "SwinSSLTrainer", "SwinScratchTrainer"

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "more": {"regions_class_order": [1, 2, 3]},
}
PIXELS = {"shape": (38, 44), "ending": ".png"}
DOZENS = {"background": 0} | {f"structure {number}": number for number in range(1, 37)}


@dataclass(frozen=True)
class Row:
    """A kind of dataset, the configuration that is trained on it, and how."""

    raw: Raw
    configuration: str = "3d_fullres"
    trainer: str = PRETRAINED
    patch: tuple[int, ...] = (16, 16, 16)
    decoder: str = "swinunetr"

    @property
    def dims(self) -> int:
        return len(self.patch)


TABLE = {
    "CT, NIfTI": Row(Raw()),
    "CT, slices, NRRD": Row(Raw(ending=".nrrd"), "2d", patch=(16, 24)),
    "MRI, thick slices that are read last, one class": Row(
        Raw(
            channels=("T1",),
            labels={"background": 0, "organ": 1},
            shape=(24, 22, 9),
            spacing=(1.0, 1.0, 5.0),
        ),
        patch=(8, 16, 16),
    ),
    "MRI, slices, NRRD, from a random start": Row(
        Raw(".nrrd", ("T2",)), "2d", SCRATCH, (16, 16), "light"
    ),
    "CT and MRI, regions": Row(Raw(channels=("CT", "T1", "noNorm"), **REGIONS), decoder="light"),
    "CT, ignore label": Row(Raw(labels={"background": 0, "organ": 1, "tumour": 2, IGNORE: 3})),
    "MRI, slices, regions and ignore label": Row(
        Raw(channels=("FLAIR", "T1"), **REGIONS | {"labels": REGIONS["labels"] | {IGNORE: 4}}),
        "2d",
        patch=(16, 16),
    ),
    "MRI, dozens of classes, nibabel, from a random start": Row(
        Raw(
            channels=("MRI",),
            labels=DOZENS,
            more={"overwrite_image_reader_writer": "NibabelIOWithReorient"},
        ),
        trainer=SCRATCH,
    ),
    "natural images, grey": Row(Raw(channels=("rescale_to_0_1",), **PIXELS), "2d", patch=(16, 32)),
    "natural images, RGB": Row(
        Raw(channels=("rgb_to_0_1",) * 3, **PIXELS), "2d", patch=(32, 32), decoder="light"
    ),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    pools_of_threads(monkeypatch)
    no_plots(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ssl(tmp_path) -> dict[int, Path]:
    """A pretrained checkpoint by its number of dimensions."""
    return {
        dims: pretrained(tmp_path / f"ssl{dims}", replace(ENCODER, spatial_dims=dims))
        for dims in (2, 3)
    }


def plan(env: dict[str, Path], row: Row, checkpoint: Path, epochs: int) -> dict:
    """By our planner, for a training that is over in a moment; the plans."""
    nnssl_plan(
        "-d",
        ID,
        "-c",
        checkpoint,
        "--decoder",
        row.decoder,
        "--patch",
        *row.patch,
        "--batch-size",
        2,
        "--epochs",
        epochs,
        "--iterations",
        2,
        "--val-iterations",
        1,
        "--no-mirror",
    )
    return files.read_json(env["nnUNet_preprocessed"] / DATASET / f"{NAME}.json")


def train(env: dict[str, Path], row: Row, fold: int | str = 0, *more: str) -> Path:
    """The fold's folder."""
    with pytest.MonkeyPatch.context() as patch:
        # augmentation in this process; nnU-Net's planning cannot have it so
        patch.setenv("nnUNet_n_proc_DA", "0")
        command(
            "nnUNetv2_train",
            ID,
            row.configuration,
            fold,
            "-tr",
            row.trainer,
            "-p",
            NAME,
            "-device",
            "cpu",
            *more,
        )
    return (
        env["nnUNet_results"]
        / DATASET
        / f"{row.trainer}__{NAME}__{row.configuration}"
        / f"fold_{fold}"
    )


def predict(env: dict[str, Path], row: Row, fold: int | str = 0, *more: object) -> Path:
    """The segmentation of the unseen case."""
    out = env["nnUNet_results"].parent / f"predicted_{row.configuration}"
    command(
        "nnUNetv2_predict",
        "-d",
        ID,
        "-i",
        env["nnUNet_raw"] / DATASET / "imagesTs",
        "-o",
        out,
        "-f",
        fold,
        "-tr",
        row.trainer,
        "-p",
        NAME,
        "-c",
        row.configuration,
        "-device",
        "cpu",
        "-npp",
        0,
        "-nps",
        0,
        *more,
    )
    return out / f"{UNSEEN}{row.raw.ending}"


def check_training(fold: Path, row: Row, epochs: int) -> None:
    """It ended, from the start it should have, and its validation knows the dataset's classes."""
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == epochs
    log = "\n".join(path.read_text() for path in fold.glob("training_log_*.txt"))
    assert log.count("encoder tensors matched") == (row.trainer == PRETRAINED)
    assert log.count("Random start") == (row.trainer == SCRATCH)
    summary = files.read_json(fold / "validation" / "summary.json")
    assert summary["mean"].keys() == row.raw.evaluated


def check_segmentation(path: Path, env: dict[str, Path], raw: Raw) -> None:
    size, where = geometry(path)
    wanted_size, wanted_where = geometry(
        env["nnUNet_raw"] / DATASET / "imagesTs" / f"{UNSEEN}_0000{raw.ending}"
    )
    assert size == wanted_size
    assert where == pytest.approx(wanted_where, abs=1e-4)
    assert set(np.unique(voxels(path))) <= raw.predictable


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLE)
def test_kind_of_dataset(nnunet_env, ssl, kind):
    row = TABLE[kind]
    write_raw(nnunet_env["nnUNet_raw"] / DATASET, row.raw)
    command("nnUNetv2_plan_and_preprocess", "-d", ID, "-c", row.configuration, "-npfp", 1, "-np", 1,
            "--verify_dataset_integrity")  # fmt: skip
    configuration = plan(nnunet_env, row, ssl[row.dims], epochs=1)["configurations"][
        row.configuration
    ]
    # nothing to preprocess again
    assert configuration["data_identifier"] == f"nnUNetPlans_{row.configuration}"
    check_training(train(nnunet_env, row), row, epochs=1)
    plan(nnunet_env, row, ssl[row.dims], epochs=2)
    check_training(train(nnunet_env, row, 0, "--c"), row, epochs=2)
    check_segmentation(predict(nnunet_env, row), nnunet_env, row.raw)


@pytest.mark.slow
def test_the_cascade(nnunet_env, ssl):
    """Planned by itself where images are large beside the patch; its first stage predicts for its
    second.
    """
    row = Row(Raw(shape=(40, 44, 40)))
    lowres, cascade = (
        replace(row, configuration=name) for name in ("3d_lowres", "3d_cascade_fullres")
    )
    write_raw(nnunet_env["nnUNet_raw"] / DATASET, row.raw)
    command("nnUNetv2_plan_and_preprocess", "-d", ID, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    assert plan(nnunet_env, row, ssl[3], epochs=1)["configurations"].keys() >= {
        "3d_lowres",
        "3d_cascade_fullres",
    }
    command("nnUNetv2_preprocess", "-d", ID, "-plans_name", NAME, "-c", "3d_lowres", "-np", 1)
    first = train(nnunet_env, lowres, "all")
    check_training(first, lowres, epochs=1)
    handed_on = list(
        (first.parent / "predicted_next_stage" / "3d_cascade_fullres").glob("case_*.b2nd")
    )
    assert len(handed_on) == TRAINING
    second = train(nnunet_env, cascade)
    check_training(second, cascade, epochs=1)
    plan(nnunet_env, row, ssl[3], epochs=2)
    check_training(train(nnunet_env, cascade, 0, "--c"), cascade, epochs=2)
    between = predict(nnunet_env, lowres, "all")
    check_segmentation(between, nnunet_env, row.raw)
    final = predict(nnunet_env, cascade, 0, "-prev_stage_predictions", between.parent)
    check_segmentation(final, nnunet_env, row.raw)
