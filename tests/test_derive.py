"""nnssl_plan -p: plans that take patch and batch from nnU-Net's, share its data, and carry
checkpoint and recipe.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_plans import DATASET, early, nnunet_plans

from nnssl import cli, files, finetune
from nnssl.encoder.presets import preset
from nnssl.finetune.architecture import INFO, PLANNED, is_ours, steps_of
from nnssl.network.decoders import OPTIONS
from nnssl.plans.derive import PlansRequest, derive
from nnssl.recipe import RECIPE, Recipe
from nnssl.types import BASE


@pytest.fixture
def planned_dataset(nnunet_env) -> Path:
    """The dataset's preprocessed folder, planned by nnU-Net."""
    folder = nnunet_env["nnUNet_preprocessed"] / DATASET
    files.write_json(folder / "nnUNetPlans.json", nnunet_plans())
    return folder


def run_plan(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nnssl_plan", "-p", BASE, *map(str, arguments)])
    return cli.plan()


def test_the_command_writes_plans_that_share_the_data_and_carry_checkpoint_and_recipe(
    planned_dataset, monkeypatch, tmp_path, capsys
):
    path = pretrained(tmp_path)
    code = run_plan(
        monkeypatch,
        "-d",
        DATASET,
        "-c",
        path,
        "--name",
        "few",
        "--epochs",
        3,
        "--iterations",
        20,
        "--lr",
        1e-3,
        "--layer-decay",
        0.8,
        "--head-lr",
        10,
        "--foreground",
        1,
        "--decoder",
        "light",
        "--patch",
        32,
        32,
        32,
        "--batch-size",
        5,
        "--unfreeze-every",
        1.5,
    )
    assert code == 0
    assert (
        "nnUNetv2_train Dataset901_Made 3d_fullres 0 -tr SwinSSLTrainer -p few"
        in capsys.readouterr().out
    )
    plans, base = files.read_json(planned_dataset / "few.json"), nnunet_plans()
    assert plans["plans_name"] == "few"
    assert Recipe.of(plans) == Recipe(
        epochs=3,
        iterations=20,
        val_iterations=4,
        foreground=1,
        lr=1e-3,
        head_lr=10,
        layer_decay=0.8,
        unfreeze_every=1.5,
    )
    assert plans[INFO]["checkpoint_path"] == str(path)
    assert plans[INFO]["sha256"] == files.sha256(path)
    assert plans["configurations"].keys() == base["configurations"].keys()
    for name in base["configurations"]:
        mine, theirs = finetune.resolve(plans, name), finetune.resolve(base, name)
        assert is_ours(mine)
        assert mine["data_identifier"] == theirs["data_identifier"]
        assert mine["batch_size"] == 5
        assert mine["patch_size"] == ([48, 40] if name == "2d" else [32, 32, 32])
        assert mine["architecture"]["arch_kwargs"]["encoder"]["spatial_dims"] == len(
            mine["patch_size"]
        )
        assert mine["architecture"]["arch_kwargs"]["decoder"] == OPTIONS["light"]


def test_a_2d_checkpoint_is_planned_for_the_2d_configuration(
    planned_dataset, monkeypatch, tmp_path, capsys
):
    path = pretrained(tmp_path, replace(ENCODER, spatial_dims=2))
    assert run_plan(monkeypatch, "-d", DATASET, "-c", path) == 0
    said = capsys.readouterr().out
    assert f"nnUNetv2_train {DATASET} 2d 0 -tr SwinSSLTrainer -p nnUNetSwinPlans" in said
    assert said.count("the checkpoint does not fit: SwinScratchTrainer only") == 2
    assert files.read_json(planned_dataset / "nnUNetSwinPlans.json")[PLANNED][
        "checkpoint_fits"
    ] == ["2d"]


def test_plans_for_a_random_start_alone(planned_dataset):
    plans = files.read_json(
        derive(PlansRequest(DATASET, base=BASE, preset="tiny", name="random")).path
    )
    assert INFO not in plans
    assert (
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["encoder"]
        == preset("tiny").to_dict()
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "nnUNetPlans"}, "would overwrite nnU-Net's own plans"),
        ({"name": "a__b"}, "nnU-Net joins trainer, plans"),
        ({"name": "../a"}, "plans names consist of letters"),
        ({"decoder": "cnn"}, "unknown decoder 'cnn'; known: swinunetr, light"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
        ({"preset": "tiny", "checkpoint": Path("x")}, "give -c or -a, not both"),
        ({"checkpoint": Path("/gone.pth")}, "no file at /gone.pth"),
        ({"recipe": {"epochs": 0}}, "epochs must be at least 1, got 0"),
        ({"base": "none", "preset": "tiny"}, "nnUNetv2_plan_and_preprocess"),
    ],
)
def test_wrong_requests_say_what_is_wrong(planned_dataset, wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        derive(
            PlansRequest(
                DATASET,
                **{"base": BASE}
                | ({"preset": "tiny"} if "checkpoint" not in wrong else {})
                | wrong,
            )
        )
    assert [path.name for path in planned_dataset.iterdir()] == ["nnUNetPlans.json"]


def test_plans_of_others_are_not_overwritten_and_ours_are(planned_dataset):
    files.write_json(planned_dataset / "theirs.json", nnunet_plans())
    with pytest.raises(ValueError, match="was not written by nnssl_plan"):
        derive(PlansRequest(DATASET, base=BASE, preset="tiny", name="theirs"))
    for epochs in (1, 2):
        path = derive(
            PlansRequest(DATASET, base=BASE, preset="tiny", name="mine", recipe={"epochs": epochs})
        ).path
        assert files.read_json(path)[RECIPE]["epochs"] == epochs
    with pytest.raises(
        ValueError, match="was written by nnssl_plan; derive new plans from nnU-Net's own"
    ):
        derive(PlansRequest(DATASET, preset="tiny", base="mine"))


def test_a_patch_of_other_axes_than_the_plans_is_refused(planned_dataset):
    base = nnunet_plans()
    del base["configurations"]["2d"]
    files.write_json(planned_dataset / "nnUNetPlans.json", base)
    with pytest.raises(ValueError, match=r"--patch 96 96 is for .* of 2 axes, but .* have 3"):
        derive(PlansRequest(DATASET, base=BASE, preset="tiny", patch=(96, 96)))
    assert [path.name for path in planned_dataset.iterdir()] == ["nnUNetPlans.json"]


@pytest.mark.parametrize(("patch", "warned"), [((256, 256, 256), True), (None, False)])
def test_only_a_patch_that_was_given_is_compared_with_the_target(
    planned_dataset, monkeypatch, capsys, patch, warned
):
    """Those of other plans are of a target of their own."""
    dataset = {"labels": {"background": 0, "organ": 1}, "numTraining": 9}
    files.write_json(planned_dataset / "dataset.json", dataset)
    base = nnunet_plans()
    base["configurations"]["3d_fullres"]["patch_size"] = [256, 256, 256]
    files.write_json(planned_dataset / "nnUNetPlans.json", base)
    arguments = ("--patch", *patch) if patch else ()
    assert run_plan(monkeypatch, "-d", DATASET, "-a", "smit", *arguments) == 0
    said = capsys.readouterr().out
    assert ("WARNING: 3d_fullres needs about 11" in said) == warned
    assert ("GPU memory" in said) == warned


def test_other_files_of_the_folder_are_no_plans(planned_dataset):
    files.write_json(planned_dataset / "dataset.json", {"numTraining": 5})
    with pytest.raises(ValueError, match="was not written by nnssl_plan"):
        derive(PlansRequest(DATASET, base=BASE, preset="tiny", name="dataset"))
    with pytest.raises(ValueError, match=r"dataset.json holds no plans; .* -p nnUNetPlans"):
        derive(PlansRequest(DATASET, base="dataset", preset="tiny"))


def test_configurations_that_inherit_have_a_network_of_their_own_spacing(
    planned_dataset, monkeypatch, capsys
):
    base = nnunet_plans()
    own = base["configurations"]["3d_fullres"]["architecture"]
    thick = [6.0, 1.0, 1.0]
    base["configurations"] |= {
        "with_architecture": {"inherits_from": "3d_fullres", "architecture": own},
        "thick": {"inherits_from": "3d_fullres", "spacing": thick, "data_identifier": "thick"},
        "more": {"inherits_from": "3d_fullres", "batch_size": 7},
    }
    files.write_json(planned_dataset / "nnUNetPlans.json", base)
    arguments = ("-d", DATASET, "-a", "tiny", "--patch", 32, 32, 32, "--batch-size", 3)
    assert run_plan(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    sizes = "patch 32 x 32 x 32, batch 3"
    assert f"  thick: {sizes}, spacing 6 x 1 x 1, data thick, strides 1x2x2" in said
    assert f"  with_architecture: {sizes}" in said
    assert "-c 2d 3d_lowres 3d_fullres with_architecture thick\n" in said
    plans = files.read_json(planned_dataset / "nnUNetSwinPlans.json")
    names = ("3d_fullres", "with_architecture", "thick", "more")
    resolved = [finetune.resolve(plans, name) for name in names]
    assert all(is_ours(each) for each in resolved)
    assert [each["batch_size"] for each in resolved] == [3, 3, 3, 7]
    halved, same, thin, more = (steps_of(each) for each in resolved)
    assert halved == same == more != thin


def test_a_configuration_of_other_data_has_a_name_of_its_own_for_them(
    planned_dataset, monkeypatch, capsys
):
    """The printed line would otherwise preprocess it into the folder of 3d_fullres."""
    base = nnunet_plans()
    base["configurations"] |= {
        "thicker": {"inherits_from": "thick", "batch_size": 7},
        "thick": {"inherits_from": "3d_fullres", "spacing": [6.0, 1.0, 1.0]},
        "nearest": {"inherits_from": "3d_fullres", "resampling_fn_data": "by_hand"},
        "copied": base["configurations"]["3d_fullres"] | {"spacing": [1.5, 3.0, 3.0]},
    }
    files.write_json(planned_dataset / "nnUNetPlans.json", base)
    assert run_plan(monkeypatch, "-d", DATASET, "-a", "tiny") == 0
    said = capsys.readouterr().out
    assert "-c 2d 3d_lowres 3d_fullres thick nearest copied\n" in said
    path = planned_dataset / "nnUNetSwinPlans.json"
    plans = files.read_json(path)
    names = ("3d_fullres", "more", "thick", "nearest", "copied")
    plans["configurations"]["more"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    data = {name: finetune.resolve(plans, name)["data_identifier"] for name in names}
    assert data["3d_fullres"] == data["more"] == "nnUNetPlans_3d"
    for name in ("thick", "nearest", "copied"):
        assert data[name].startswith(f"nnUNetSwinPlans_{name}_")
    thicker = finetune.resolve(plans, "thicker")
    assert (thicker["data_identifier"], thicker["spacing"]) == (data["thick"], [6.0, 1.0, 1.0])
    for name in plans["configurations"]:
        finetune.require_same_data(planned_dataset, plans, name)


def test_data_of_its_own_change_their_name_with_the_settings(planned_dataset):
    request = PlansRequest(DATASET, base=BASE, preset="tiny", name="mine")
    path = derive(request).path
    plans, made = files.read_json(path), []
    for spacing in ([6.0, 1.0, 1.0], [6.0, 1.0, 1.0], [8.0, 1.0, 1.0], [1.5, 1.0, 1.0]):
        thick = plans["configurations"].setdefault("thick", {"inherits_from": "3d_fullres"})
        thick["spacing"] = spacing
        files.write_json(path, plans)
        plans = files.read_json(derive(request).path)
        made.append(plans["configurations"]["thick"]["data_identifier"])
    assert made[0] == made[1]
    assert len(set(made)) == 3
    chosen = {
        "inherits_from": "3d_fullres",
        "spacing": [6, 1, 1],
        "data_identifier": "mine_thick_v2",
    }
    files.write_json(path, plans | {"configurations": plans["configurations"] | {"thick": chosen}})
    again = files.read_json(derive(request).path)
    assert again["configurations"]["thick"]["data_identifier"] == "mine_thick_v2"


@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans format")
def test_plans_of_early_nnunet_give_the_same_network(planned_dataset, monkeypatch):
    """They call the intensities by another name, and describe a network of nnU-Net otherwise."""
    assert run_plan(monkeypatch, "-d", DATASET, "-c", "parcels_tiny", "--name", "now") == 0
    files.write_json(planned_dataset / "nnUNetPlans.json", early(nnunet_plans()))
    assert run_plan(monkeypatch, "-d", DATASET, "-c", "parcels_tiny", "--name", "then") == 0
    now, then = (files.read_json(planned_dataset / f"{name}.json") for name in ("now", "then"))
    for name in now["configurations"]:
        wanted, found = (finetune.resolve(plans, name)["architecture"] for plans in (now, then))
        assert found == wanted
        assert wanted["arch_kwargs"]["intensity"]


def test_plans_made_again_keep_added_configurations_and_say_what_changed(
    planned_dataset, monkeypatch, capsys
):
    arguments = ("-c", "parcels_tiny", "--batch-size", 2, "--no-mirror", "--lr", 1e-3)
    assert run_plan(monkeypatch, "-d", DATASET, *arguments) == 0
    assert "changed" not in capsys.readouterr().out
    path = planned_dataset / "nnUNetSwinPlans.json"
    plans = files.read_json(path)
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        "larger": {"inherits_from": "3d_fullres", "batch_size": 7},
        "whole": full | {"patch_size": [32, 48, 40], "batch_size": 4},
    }
    files.write_json(path, plans)
    arguments = ("-d", DATASET, "-a", "smit", "--batch-size", 3, "--epochs", 1500)
    assert run_plan(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    for line in (
        "mirror from False to True",
        "lr from 0.001 to 0.0005",
        "epochs from 1000 to 1500",
        "checkpoint from parcels_tiny to none",
        "3d_fullres batch_size from 2 to 3",
        "encoder embed_dim from 24 to 48",
        "decoder from light, norm dataset to swinunetr",
    ):
        assert f"  changed: {line}\n" in said
    assert "changed: head_lr" not in said
    plans = files.read_json(path)
    for name, batch in (("3d_fullres", 3), ("larger", 7), ("whole", 4)):
        resolved = finetune.resolve(plans, name)
        assert resolved["batch_size"] == batch
        # its own network is that of the new plans
        encoder = resolved["architecture"]["arch_kwargs"]["encoder"]
        assert encoder["embed_dim"] == preset("smit").embed_dim


def test_an_added_configuration_without_its_base_stops_the_planning(planned_dataset):
    request = PlansRequest(DATASET, base=BASE, preset="tiny", name="mine")
    path = derive(request).path
    plans = files.read_json(path)
    plans["configurations"]["lower"] = {"inherits_from": "3d_lowres", "batch_size": 7}
    files.write_json(path, plans)
    base = nnunet_plans()
    del base["configurations"]["3d_lowres"], base["configurations"]["3d_cascade_fullres"]
    files.write_json(planned_dataset / "nnUNetPlans.json", base)
    with pytest.raises(ValueError, match="lower, added by hand, which is based on 3d_lowres"):
        derive(request)
    assert files.read_json(path) == plans


def test_the_command_answers_errors_without_a_traceback(nnunet_env, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert run_plan(monkeypatch, "-d", "901", "-a", "tiny") == 1
    assert "export nnUNet_raw=" in capsys.readouterr().err
