"""The planner: patch, batch and strides for our network, nnU-Net's spacing and normalisation,
shared data.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from synthetic_checkpoints import pretrained
from synthetic_datasets import ID, NAME, synthetic_dataset

from nnssl import cli, files, finetune
from nnssl.encoder.presets import preset
from nnssl.finetune.architecture import INFO, PLANNED, is_ours, steps_of
from nnssl.plans import memory_model
from nnssl.plans.derive import PlansRequest, derive
from nnssl.plans.patch import plan_batch, plan_patch
from nnssl.plans.plans_description import describe_plans
from nnssl.recipe import RECIPE
from nnssl.types import BASE

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {  # shape and spacing (z y x), and the dataset's other properties
    "head and neck CT": ((93, 128, 128), (3.0, 2.5, 2.5), {}),
    "large CT": ((480, 512, 512), (1.0, 0.8, 0.8), {}),
    "cine MRI": ((10, 256, 216), (10.0, 1.5, 1.5), {"channels": ("MRI",)}),
    "tiny MRI": ((36, 50, 35), (1.0, 1.0, 1.0), {"channels": ("MRI",), "cases": 60}),
    "sagittal MRI": ((256, 256, 20), (0.8, 0.8, 5.0), {"channels": ("T1", "T2", "CT")}),
    "photographs": ((1, 1024, 1280), (999.0, 1.0, 1.0), {"channels": ("R", "G", "B")}),
}  # fmt: skip


def plan(folders, kind: str, **options) -> dict:
    shape, spacing, more = KINDS[kind]
    synthetic_dataset(folders, shape, spacing, **more)
    return files.read_json(derive(PlansRequest(NAME, **({"preset": "smit"} | options))).path)


@pytest.mark.parametrize("kind", KINDS)
def test_plans_fit_the_memory_and_the_images(nnunet_env, kind):
    shape, _, more = KINDS[kind]
    plans = plan(nnunet_env, kind)
    names = plans["configurations"].keys()
    assert names >= ({"2d"} if kind == "photographs" else {"2d", "3d_fullres"})
    assert ("3d_cascade_fullres" in names) == (kind == "large CT")
    classes = 3
    for name in names:
        configuration = finetune.resolve(plans, name)
        patch, batch = tuple(configuration["patch_size"]), configuration["batch_size"]
        assert is_ours(configuration)
        assert batch >= 2
        median = [shape[axis] for axis in plans["transpose_forward"]][-len(patch) :]
        assert (
            all(min(16, m) <= n < m + 8 for n, m in zip(patch, median, strict=True))
            or name == "3d_lowres"
        )
        channels = len(more.get("channels", ("CT",)))
        config = replace(
            preset("smit", len(patch)), steps=steps_of(configuration), in_channels=channels
        )
        needed = memory_model.peak_bytes(config, "swinunetr", patch, batch, classes)
        assert needed * (1 + memory_model.TOLERANCE) <= 8e9
        covers = all(n >= m for n, m in zip(patch, median, strict=True))
        larger = memory_model.peak_bytes(
            config, "swinunetr", tuple(n + 8 for n in patch), 2, classes
        )
        assert covers or name == "3d_lowres" or larger * (1 + memory_model.TOLERANCE) > 8e9


def test_a_thin_axis_comes_first_in_the_plans_and_is_not_halved_at_once(nnunet_env):
    configuration = plan(nnunet_env, "sagittal MRI")["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [5.0, 0.8, 0.8]
    assert 12 <= configuration["patch_size"][0] <= 20
    assert steps_of(configuration)[:3] == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert configuration["architecture"]["arch_kwargs"]["encoder"]["steps"][0] == [2, 2, 1]
    assert configuration["architecture"]["arch_kwargs"]["axes"] == [2, 0, 1]


@pytest.mark.slow
def test_more_memory_and_a_lighter_decoder_give_larger_patches(nnunet_env):
    def volume(**options) -> int:
        return prod(
            plan(nnunet_env, "large CT", **options)["configurations"]["3d_fullres"]["patch_size"]
        )

    assert volume() < volume(decoder="light") < volume(decoder="light", gpu_memory_target=24.0)


def test_too_little_memory_says_what_helps(nnunet_env):
    with pytest.raises(ValueError, match=r"GB are not enough: .* Raise -gpu_memory_target"):
        plan(nnunet_env, "large CT", gpu_memory_target=0.5)


def memory_warnings(path: Path, request: PlansRequest) -> list[str]:
    lines = describe_plans(path, request).splitlines()
    return [line for line in lines if line.startswith("WARNING") and "GPU memory" in line]


def test_a_given_patch_beyond_the_target_is_taken_with_its_estimate(nnunet_env):
    synthetic_dataset(nnunet_env, *KINDS["head and neck CT"][:2])
    request = PlansRequest(NAME, preset="smit", patch=(256, 256, 256))
    path = derive(request).path
    (said,) = memory_warnings(path, request)
    config = preset("smit")
    estimate = memory_model.peak_bytes(config, "swinunetr", request.patch, 2, classes=3) / 1e9
    assert f"3d_fullres needs about {estimate:.3g} GB" in said
    assert "patch 256 x 256 x 256 and batch 2; the target is 8 GB" in said
    assert memory_warnings(path, replace(request, gpu_memory_target=200.0)) == []
    larger = replace(request, patch=None, batch_size=200)
    two, three = memory_warnings(derive(larger).path, larger)
    assert two.startswith("WARNING: 2d needs about")
    assert three.startswith("WARNING: 3d_fullres needs about")


def test_the_labels_that_a_cascade_has_as_channels_are_in_its_estimate(nnunet_env):
    organs = {"background": 0} | {f"organ {number}": number for number in range(1, 61)}
    shape, spacing, _ = KINDS["large CT"]
    synthetic_dataset(nnunet_env, shape, spacing, labels=organs)
    request = PlansRequest(NAME, preset="smit")
    (said,) = memory_warnings(derive(request).path, request)
    assert said.startswith("WARNING: 3d_cascade_fullres, the labels of its previous stage among")


@pytest.mark.slow
def test_data_are_shared_with_nnunets_plans_only_where_both_would_preprocess_the_same(
    nnunet_env, tmp_path
):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    shape, spacing, _ = KINDS["head and neck CT"]
    synthetic_dataset(nnunet_env, shape, spacing)
    own = plan(nnunet_env, "head and neck CT", name="own")["configurations"]
    assert own["3d_fullres"]["data_identifier"].startswith("own_3d_fullres_")
    plan_experiment_dataset(ID)
    shared = plan(nnunet_env, "head and neck CT")["configurations"]
    assert {name: c["data_identifier"] for name, c in shared.items()} == {
        "2d": "nnUNetPlans_2d", "3d_fullres": "nnUNetPlans_3d_fullres"
    }  # fmt: skip
    path = pretrained(tmp_path)
    other = plan(
        nnunet_env,
        "head and neck CT",
        name="other",
        spacing="pretraining",
        preset=None,
        checkpoint=path,
    )
    assert other["configurations"]["3d_fullres"]["spacing"] == [3.0, 2.0, 2.0]
    assert other["configurations"]["3d_fullres"]["data_identifier"].startswith("other_3d_fullres_")
    assert other[PLANNED]["spacing"] == "pretraining"
    assert other[PLANNED]["checkpoint_fits"] == ["3d_fullres"]
    assert other[INFO]["hu"]["sd"] == 310.0
    assert other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["intensity"][
        "scale"
    ] == [150 / 310]


@pytest.mark.parametrize("base", [None, BASE])
def test_volumes_of_other_modalities_are_planned_from_natural_images(nnunet_env, base):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    from nnssl.plans.planner import SwinPlanner

    synthetic_dataset(nnunet_env, (24, 32, 32), (2.0, 2.0, 2.0), channels=("T1", "T2"))
    plan_experiment_dataset(ID)
    plans = files.read_json(derive(PlansRequest(NAME, base=base)).path)
    assert plans[INFO]["checkpoint_path"] == "natural_tiny_3d"
    assert plans[PLANNED]["checkpoint_fits"] == ["3d_fullres"]
    assert SwinPlanner(NAME).start.info["checkpoint_path"] == "natural_tiny_3d"


def test_images_of_slices_are_planned_from_the_2d_weights(nnunet_env, tmp_path):
    plans = plan(nnunet_env, "photographs", preset=None)
    assert plans[INFO]["checkpoint_path"] == "natural_tiny"
    assert plans[PLANNED]["checkpoint_fits"] == ["2d"]
    request = PlansRequest(NAME, checkpoint=str(pretrained(tmp_path)))
    said = describe_plans(derive(request).path, request)  # a 3D checkpoint, which fits none of them
    assert said.endswith("2d 0 -tr SwinScratchTrainer -p nnUNetSwinPlans")


def test_the_planner_is_nnunets_own_and_works_through_its_interface(
    nnunet_env, monkeypatch, tmp_path
):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnssl.plans.planner import SwinPlanner

    synthetic_dataset(nnunet_env, (24, 32, 32), (2.0, 2.0, 2.0), channels=("CT", "MRI"))
    monkeypatch.setenv("nnssl_checkpoint", str(pretrained(tmp_path)))
    returned, name = plan_experiment_dataset(ID, SwinPlanner, gpu_memory_target_in_gb=2)
    assert name == "nnUNetSwinPlans"
    plans = files.read_json(nnunet_env["nnUNet_preprocessed"] / NAME / "nnUNetSwinPlans.json")
    assert plans == returned
    assert plans["experiment_planner_used"] == "SwinPlanner"
    assert RECIPE in plans
    assert plans[INFO]["method"] == "smit"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    entry = configuration["architecture"]
    path = nnunet_env["nnUNet_preprocessed"] / NAME / "nnUNetSwinPlans.json"
    files.write_json(path, with_own_configuration(plans, based_on="3d_fullres"))
    plan_experiment_dataset(ID, SwinPlanner, gpu_memory_target_in_gb=2)
    assert files.read_json(path)["configurations"]["mine"]["batch_size"] == 3
    network = get_network_from_plans(
        entry["network_class_name"], entry["arch_kwargs"], [], 2, 3, deep_supervision=False
    )
    assert network(torch.zeros(1, 2, *configuration["patch_size"])).shape[1] == 3


def with_own_configuration(plans: dict, based_on: str) -> dict:
    """`plans`, to which a user has added `mine`."""
    mine = {"inherits_from": based_on, "batch_size": 3}
    return plans | {"configurations": plans["configurations"] | {"mine": mine}}


def test_plans_that_cannot_be_made_again_stay_as_they_were(nnunet_env):
    options = {"preset": "tiny", "name": "own", "recipe": {"epochs": 7, "lr": 1e-3}}
    made = plan(nnunet_env, "tiny MRI", **options)
    path = nnunet_env["nnUNet_preprocessed"] / NAME / "own.json"
    added = with_own_configuration(made, based_on="3d_lowres")  # which is not planned for these
    files.write_json(path, added)
    with pytest.raises(ValueError, match="mine, added by hand, which is based on 3d_lowres"):
        plan(nnunet_env, "tiny MRI", **options)
    assert files.read_json(path) == added


@pytest.mark.slow
def test_the_commands_plan_preprocess_and_say_what_to_type(nnunet_env, monkeypatch, capsys):
    from test_nnunet import command

    from nnssl import phantoms

    raw = nnunet_env["nnUNet_raw"] / NAME
    phantoms.write_nnunet_dataset(raw, training=range(3), unseen=range(0), shape=(12, 24, 20))
    requested = [
        "-d",
        str(ID),
        "-a",
        "tiny",
        "-gpu_memory_target",
        "1",
        "--spacing",
        "6",
        "4",
        "4",
        "--decoder",
        "light",
    ]
    monkeypatch.setattr(sys, "argv", ["nnssl_plan", *requested])
    assert cli.plan() == 0
    said = capsys.readouterr().out
    assert f"nnUNetv2_preprocess -d {ID} -plans_name nnUNetSwinPlans -c 2d 3d_fullres" in said
    # 3 cases
    assert f"nnUNetv2_train {ID} 3d_fullres all -tr SwinScratchTrainer -p nnUNetSwinPlans" in said
    command(
        "nnUNetv2_preprocess",
        "-d",
        ID,
        "-plans_name",
        "nnUNetSwinPlans",
        "-c",
        "3d_fullres",
        "-np",
        1,
    )
    (data,) = (nnunet_env["nnUNet_preprocessed"] / NAME).glob("nnUNetSwinPlans_3d_fullres_*")
    assert len(list(data.glob("*.pkl"))) == 3
    monkeypatch.setattr(sys, "argv", ["nnssl_plan", *requested])
    assert cli.plan() == 0
    assert "-c 2d\n" in capsys.readouterr().out
    # data of another spacing under the same name of plans would be trained on
    elsewhere = ["3" if word == "6" else word for word in requested]
    monkeypatch.setattr(sys, "argv", ["nnssl_plan", *elsewhere])
    assert cli.plan() == 0
    assert "-c 2d 3d_fullres\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spacing": "isotropic"}, "--spacing must be dataset, pretraining, or three numbers"),
        ({"spacing": (1.0, 1.0)}, "three positive numbers"),
        ({"spacing": "pretraining"}, "needs a checkpoint"),
        ({"base": "nnUNetPlans", "gpu_memory_target": 24.0}, "leave out -p"),
        ({"gpu_memory_target": 0.0}, "must be positive, in GB"),
        ({"name": "nnUNetPlans"}, "would overwrite nnU-Net's own plans"),
        ({"patch": (96,)}, r"patch must be three numbers Z Y X, or two .*, got \(96,\)"),
        ({"patch": (8, 8, 8, 8)}, "patch must be three numbers"),
        ({"patch": (0, 0, 0)}, "of at least 1 voxel each, got"),
        ({"patch": (-3, 16, 16)}, "of at least 1 voxel each, got"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({}, "raw dataset .* does not exist, but planning needs it"),
    ],
)
def test_wrong_requests_say_what_is_wrong(nnunet_env, wrong, message):
    (nnunet_env["nnUNet_raw"] / NAME).mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        derive(PlansRequest(NAME, **({"preset": "tiny"} | wrong)))


def simple_peak(patch: tuple[int, ...], batch: int) -> float:
    return 1e9 + 100.0 * batch * prod(patch)


def test_a_patch_keeps_the_proportions_of_the_image_and_uses_the_memory():
    def grain(patch):
        return (8,) * len(patch)

    patch = plan_patch((1.0, 1.0, 1.0), (100, 400, 200), simple_peak, grain, 2.0)
    assert simple_peak(patch, 2) <= 2e9 < simple_peak(tuple(n + 8 for n in patch), 2)
    assert max(n / m for n, m in zip(patch, (100, 400, 200), strict=True)) < 1.5 * patch[0] / 100
    assert plan_patch((1.0, 1.0), (60, 41), simple_peak, grain, 2.0) == (64, 48)
    assert plan_batch((64, 48), simple_peak, 2.0, most=1e9) == int(1e9 / (100 * 64 * 48))
    assert plan_batch((64, 48), simple_peak, 2.0, most=7.4) == 7
    assert plan_batch((64, 48), simple_peak, 2.0, most=0.3) == 2
