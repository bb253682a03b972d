"""What the trainers share: which checkpoint, which network, which learning rate; and the plans made by nnssl_plan."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from made_checkpoints import HU, pretrained
from micro import ENCODER

from nnssl import checkpoint, cli, files, finetune, hook
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import SwinConfig
from nnssl.network import origin
from nnssl.network.origin import NoCheckpointError, OriginError
from nnssl.network.planned import INFO, RECIPE, Recipe, is_ours
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.plans.derive import Request, derive

DATASET = "Dataset901_Made"
REPOSITORY = Path(__file__).resolve().parents[1]


def configuration(patch: list[int], schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    dims = len(patch)
    return {
        "data_identifier": f"nnUNetPlans_{dims}d",
        "patch_size": patch,
        "batch_size": 2,
        "spacing": [3.0, 1.0, 1.0][-dims:],
        "normalization_schemes": list(schemes),
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }


def nnunet_plans(schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    """The part of nnU-Net's plans that matters here, with the two cascaded configurations."""
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "foreground_intensity_properties_per_channel": {str(c): {"mean": 90.0, "std": 140.0} for c in range(2)},
        "configurations": {
            "2d": configuration([48, 40], schemes),
            "3d_lowres": configuration([24, 32, 32], schemes),
            "3d_fullres": configuration([20, 48, 40], schemes),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


@pytest.fixture
def planned_dataset(nnunet_env) -> Path:
    """The dataset's preprocessed folder, planned by nnU-Net."""
    folder = nnunet_env["nnUNet_preprocessed"] / DATASET
    files.write_json(folder / "nnUNetPlans.json", nnunet_plans())
    return folder


# ---- the recipe ----------------------------------------------------------------------------------------------


def test_a_recipe_takes_nnunets_length_by_default_and_refuses_unknown_keys():
    assert (Recipe.of({}).epochs, Recipe.of({}).iterations, Recipe.of({}).val_iterations) == (1000, 250, 50)
    assert Recipe.of({RECIPE: {"epochs": 7}}).epochs == 7
    with pytest.raises(ValueError, match=r"unknown key.*: epoch; known: epochs, iterations"):
        Recipe.of({RECIPE: {"epoch": 7}})


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": -1.0}, {"layer_decay": 1.5}, {"schedule": "step"}])
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match="a fine-tuning recipe needs"):
        Recipe(**wrong)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_learning_rate_rises_linearly_then_falls_to_nothing(schedule):
    recipe = Recipe(epochs=100, lr=0.4, warmup_epochs=10, schedule=schedule)
    rates = [finetune.learning_rate(epoch, recipe) for epoch in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02
    assert rates[55] == pytest.approx(0.4 * 0.5**0.9 if schedule == "poly" else 0.2)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_trainings_learn_in_every_epoch(epochs):
    recipe = Recipe(epochs=epochs, lr=1.0)
    assert min(finetune.learning_rate(epoch, recipe) for epoch in range(epochs)) > 0.2


def small_network(deep_supervision: bool = True) -> SwinUNETR:
    torch.manual_seed(0)
    config = SwinConfig(2, embed_dim=6, depths=(1, 2, 3, 1), heads=(1, 1, 2, 2))
    return SwinUNETR(1, 2, deep_supervision, encoder=config.to_dict(), decoder="light")


def test_every_trained_parameter_is_in_one_group_with_its_layers_learning_rate():
    network, recipe = small_network(), Recipe(lr=1e-3, layer_decay=0.5)
    groups = finetune.parameter_groups(network, recipe)
    rate = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert groups[0]["lr_scale"] == 1  # the one whose learning rate nnU-Net logs
    named = dict(network.named_parameters())
    of = {name: rate[id(parameter)] for name, parameter in named.items()}
    assert of["encoder.patch_embed.proj.weight"] == (0.5**8, 0.05)
    assert of["encoder.layers1.0.blocks.0.attn.qkv.weight"] == (0.5**7, 0.05)
    assert of["encoder.layers1.0.downsample.reduction.weight"][0] == 0.5**6
    assert of["encoder.layers2.0.blocks.0.attn.qkv.weight"][0] == 0.5**6
    assert of["encoder.layers3.0.blocks.2.norm1.weight"] == (0.5**2, 0.0)
    assert of["encoder.layers4.0.blocks.0.attn.relative_position_bias_table"] == (0.5, 0.0)
    assert of["encoder.layers4.0.downsample.reduction.weight"][0] == 0.5
    assert {scale for name, (scale, _) in of.items() if name.startswith("decoder.")} == {1.0}
    assert all(decay == 0 for name, (_, decay) in of.items() if name.endswith("bias"))


def test_frozen_heads_are_left_out():
    groups = finetune.parameter_groups(small_network(deep_supervision=False), Recipe())
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_the_schedule_needs_no_state_and_each_step_clips():
    network, recipe = small_network(), Recipe(epochs=10, lr=1e-3, clip=0.5)
    optimizer, schedule = finetune.optimise(network, recipe, torch.device("cpu"))
    schedule.step(7)
    assert optimizer.param_groups[0]["lr"] == finetune.learning_rate(7, recipe)
    assert all(
        g["lr"] == pytest.approx(g["lr_scale"] * optimizer.param_groups[0]["lr"]) for g in optimizer.param_groups
    )
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    norms = [parameter.grad.norm() for parameter in network.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("patch", [(20, 48, 40), (7, 33, 50), (64, 64)])
def test_nnunets_own_transform_makes_targets_of_the_outputs_sizes(patch):
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    targets = DownsampleSegForDSTransform(finetune.deep_supervision_scales(patch))._apply_to_segmentation(
        torch.zeros(1, *patch, dtype=torch.int16)
    )
    assert [tuple(target.shape[1:]) for target in targets] == output_sizes(patch)
    weights = finetune.deep_supervision_weights(4)
    assert sum(weights) == pytest.approx(1)
    assert [w / weights[0] for w in weights] == [1, 0.5, 0.25, 0.125]


# ---- which checkpoint ----------------------------------------------------------------------------------------


def test_first_the_plans_then_the_variable_then_the_only_one(nnunet_env, monkeypatch, tmp_path):
    assert origin.choose({}) is None
    only = pretrained(nnunet_env["nnUNet_results"] / "nnssl" / "ct" / "smit__tiny")
    assert origin.choose({}).path == only
    variable = pretrained(tmp_path / "variable")
    monkeypatch.setenv(origin.VARIABLE, str(variable))
    assert origin.choose({}).path == variable
    plans = pretrained(tmp_path / "plans")
    assert origin.choose({"checkpoint_path": str(plans)}).path == plans


def test_none_or_several_are_an_error_that_lists_them_and_says_what_to_type(nnunet_env):
    with pytest.raises(
        NoCheckpointError, match=r"no pretrained checkpoint was found(.|\n)*nnssl_plan -d(.|\n)*SwinScratchTrainer"
    ):
        origin.demand(origin.choose({}))
    both = [pretrained(nnunet_env["nnUNet_results"] / "nnssl" / name) for name in ("one", "two")]
    with pytest.raises(NoCheckpointError) as error:
        origin.choose({})
    assert all(str(path) in str(error.value) for path in both)
    assert "export nnssl_checkpoint=" in str(error.value)
    with pytest.raises(
        NoCheckpointError, match=r"no file at /gone.pth, the checkpoint named by the plans. Found instead"
    ):
        origin.choose({"checkpoint_path": "/gone.pth"})


def test_settling_writes_all_that_a_prediction_needs(nnunet_env, monkeypatch, tmp_path):
    path = pretrained(tmp_path)
    monkeypatch.setenv(origin.VARIABLE, str(path))
    plans = nnunet_plans(("CTNormalization", "ZScoreNormalization"))
    finetune.settle(plans, "3d_fullres", random_start=False)
    path.unlink()
    network = finetune.build(finetune.resolve(plans, "3d_fullres"), 2, 3, deep_supervision=False)
    assert network.encoder.config == SwinConfig.from_dict(ENCODER.to_dict() | {"in_channels": 2})
    assert network.encoder.intensity.scale.tolist() == pytest.approx([140 / HU["sd"], 1.0])
    assert len(plans[INFO]["sha256"]) == 64
    finetune.settle(plans, "3d_fullres", random_start=False)  # a resumed run: nothing to look for


def test_every_tensor_is_counted_and_a_changed_file_refused(nnunet_env, monkeypatch, tmp_path):
    path = pretrained(tmp_path)
    monkeypatch.setenv(origin.VARIABLE, str(path))
    plans = nnunet_plans()
    finetune.settle(plans, "3d_fullres", random_start=False)
    network = finetune.build(finetune.resolve(plans, "3d_fullres"), 1, 3, deep_supervision=False)
    lines = "\n".join(finetune.load(network, plans))
    tensors = len(list(network.encoder.parameters()))
    assert f"{tensors} of {tensors} encoder tensors matched" in lines
    assert str(path) in lines
    assert plans[INFO]["sha256"] in lines
    assert plans[INFO]["matched"] == plans[INFO]["total"] == tensors
    for name, tensor in checkpoint.load(path).weights.items():
        if "mask_token" not in name:
            torch.testing.assert_close(network.state_dict()[name], tensor)
    pretrained(tmp_path, seed=1)
    with pytest.raises(OriginError, match="has changed since"):
        finetune.load(network, plans)


def test_a_3d_checkpoint_does_not_start_a_2d_network(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(origin.VARIABLE, str(pretrained(tmp_path)))
    plans = nnunet_plans()
    finetune.settle(plans, "2d", random_start=False)
    network = finetune.build(finetune.resolve(plans, "2d"), 1, 3, deep_supervision=False)
    with pytest.raises(OriginError, match="pretrained in 3D, this configuration is 2D"):
        finetune.load(network, plans)


def test_a_random_start_is_of_the_same_network_and_by_itself_of_the_default_preset(nnunet_env, monkeypatch, tmp_path):
    alone = nnunet_plans()
    finetune.settle(alone, "2d", random_start=True)
    arguments = alone["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arguments["encoder"] == preset("smit", 2).to_dict()
    assert arguments["intensity"] is None
    with pytest.raises(NoCheckpointError, match="name our network but no checkpoint"):
        finetune.load(small_network(), alone)

    monkeypatch.setenv(origin.VARIABLE, str(pretrained(tmp_path)))
    twins = nnunet_plans(), nnunet_plans()
    for plans, random_start in zip(twins, (True, False), strict=True):
        finetune.settle(plans, "3d_fullres", random_start)
    assert twins[0] == twins[1]


def test_a_resumed_model_is_that_of_its_own_checkpoint(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(origin.VARIABLE, str(pretrained(tmp_path / "then")))
    then, now = nnunet_plans(), nnunet_plans()
    finetune.settle(then, "3d_fullres", random_start=False)
    other = SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    monkeypatch.setenv(origin.VARIABLE, str(pretrained(tmp_path / "now", other)))
    finetune.settle(now, "3d_fullres", random_start=False)
    resolved = finetune.resolve(now, "3d_fullres")
    finetune.adopt(now, resolved, "3d_fullres", then)
    assert now == then
    assert resolved["architecture"]["arch_kwargs"]["encoder"] == ENCODER.to_dict()


def test_folds_of_different_pretrainings_are_not_mixed(tmp_path):
    finetune.refuse_mixed_folds(tmp_path, 0, {"sha256": "a"})
    files.write_json(tmp_path / "plans.json", {INFO: {"sha256": "a"}})
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    finetune.refuse_mixed_folds(tmp_path, 1, {"sha256": "a"})
    finetune.refuse_mixed_folds(tmp_path, 0, {"sha256": "b"})  # this very fold, trained again
    with pytest.raises(OriginError, match=r"1 fold\(s\) trained from the checkpoint with sha256 a"):
        finetune.refuse_mixed_folds(tmp_path, 1, {"sha256": "b"})


# ---- nnssl_plan ----------------------------------------------------------------------------------------------


def run_plan(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nnssl_plan", *map(str, arguments)])
    return cli.plan()


def test_the_command_writes_plans_that_share_the_data_and_carry_checkpoint_and_recipe(
    planned_dataset, monkeypatch, tmp_path, capsys
):
    path = pretrained(tmp_path)
    code = run_plan(
        monkeypatch, "-d", DATASET, "-c", path, "--name", "few", "--epochs", 3, "--iterations", 20, "--lr", 1e-3,
        "--layer-decay", 0.8, "--decoder", "light", "--patch", 32, 32, 32, "--batch-size", 5,
    )  # fmt: skip
    assert code == 0
    assert "nnUNetv2_train Dataset901_Made 3d_fullres 0 -tr SwinSSLTrainer -p few" in capsys.readouterr().out
    plans, base = files.read_json(planned_dataset / "few.json"), nnunet_plans()
    assert plans["plans_name"] == "few"
    assert Recipe.of(plans) == Recipe(epochs=3, iterations=20, val_iterations=4, lr=1e-3, layer_decay=0.8)
    assert plans[INFO]["checkpoint_path"] == str(path)
    assert plans[INFO]["sha256"] == files.sha256(path)
    assert plans["configurations"].keys() == base["configurations"].keys()
    for name in base["configurations"]:
        mine, theirs = finetune.resolve(plans, name), finetune.resolve(base, name)
        assert is_ours(mine)
        assert mine["data_identifier"] == theirs["data_identifier"]
        assert mine["batch_size"] == 5
        assert mine["patch_size"] == ([48, 40] if name == "2d" else [32, 32, 32])
        assert mine["architecture"]["arch_kwargs"]["encoder"]["spatial_dims"] == len(mine["patch_size"])
        assert mine["architecture"]["arch_kwargs"]["decoder"] == "light"


def test_plans_for_a_random_start_alone(planned_dataset):
    plans = files.read_json(derive(Request(DATASET, preset="tiny", name="random")))
    assert INFO not in plans
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["encoder"] == preset("tiny").to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "nnUNetPlans"}, "would overwrite the plans"),
        ({"name": "a__b"}, "nnU-Net joins trainer, plans"),
        ({"name": "../a"}, "plans are named by letters"),
        ({"decoder": "cnn"}, "unknown decoder 'cnn'; known: swinunetr, light"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
        ({"preset": "tiny", "checkpoint": Path("x")}, "give -c or -a, not both"),
        ({"checkpoint": Path("/gone.pth")}, "no file at /gone.pth"),
        ({"recipe": {"epochs": 0}}, "a fine-tuning recipe needs"),
        ({"base": "none", "preset": "tiny"}, "nnUNetv2_plan_and_preprocess"),
    ],
)
def test_wrong_requests_say_what_is_wrong(planned_dataset, wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        derive(Request(DATASET, **({"preset": "tiny"} if "checkpoint" not in wrong else {}) | wrong))
    assert [path.name for path in planned_dataset.iterdir()] == ["nnUNetPlans.json"]


def test_plans_of_others_are_not_overwritten_and_ours_are(planned_dataset):
    files.write_json(planned_dataset / "theirs.json", nnunet_plans())
    with pytest.raises(ValueError, match="was not made by nnssl_plan"):
        derive(Request(DATASET, preset="tiny", name="theirs"))
    for epochs in (1, 2):
        path = derive(Request(DATASET, preset="tiny", name="mine", recipe={"epochs": epochs}))
        assert files.read_json(path)[RECIPE]["epochs"] == epochs
    with pytest.raises(ValueError, match="was made by nnssl_plan; derive new plans from nnU-Net's own"):
        derive(Request(DATASET, preset="tiny", base="mine"))


def test_the_command_answers_errors_without_a_traceback(nnunet_env, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert run_plan(monkeypatch, "-d", "901", "-a", "tiny") == 1
    assert "export nnUNet_raw=" in capsys.readouterr().err


# ---- how nnU-Net finds the trainers --------------------------------------------------------------------------


def test_our_folder_is_added_once_behind_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv(hook.VARIABLE, str(tmp_path))
    hook.add_trainers(), hook.add_trainers()
    assert os.environ[hook.VARIABLE].split(os.pathsep) == [str(tmp_path), hook.trainers_folder()]
    assert (Path(hook.trainers_folder()) / "nnssl_swin_ssl.py").is_file()


def start_up(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Python with `folder` as a site-packages that holds the start-up file."""
    (folder / "nnssl_trainers.pth").write_text((REPOSITORY / "trainers" / "nnssl_trainers.pth").read_text())
    lines = f"import os, site, sys; sys.path.append({str(folder)!r}); site.addsitedir({str(folder)!r})\n{code}"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", hook.VARIABLE)}
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", lines]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_the_start_up_file_adds_the_folder_of_a_wheel_and_imports_nothing_heavy(tmp_path):
    (tmp_path / "nnssl" / "trainers").mkdir(parents=True)
    for name in ("__init__.py", "hook.py", "conflict.py"):
        (tmp_path / "nnssl" / name).write_text((REPOSITORY / "nnssl" / name).read_text())
    twice = f"site.addsitedir({str(tmp_path)!r})"
    code = f"{twice}; print(os.environ['nnUNet_extTrainer'], 'torch' in sys.modules, 'nnssl' in sys.modules)"
    done = start_up(tmp_path, code)
    assert (done.stdout.split(), done.stderr) == ([str(tmp_path / "nnssl" / "trainers"), "False", "False"], "")


def test_the_start_up_file_is_silent_where_the_package_is_gone(tmp_path):
    done = start_up(tmp_path, "print(os.environ.get('nnUNet_extTrainer'))")
    assert (done.stdout.strip(), done.stderr) == ("None", "")
