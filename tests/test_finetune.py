"""What the trainers share: which checkpoint, which network, which learning rate."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import HU, pretrained
from synthetic_plans import nnunet_plans

from nnssl import checkpoint, files, finetune
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import preset
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO, architecture
from nnssl.finetune.checkpoint_choice import NoCheckpointError, OriginError
from nnssl.finetune.plans_data import ChangedPlansError
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.recipe import RECIPE, Recipe


def test_a_recipe_takes_nnunets_length_by_default_and_refuses_unknown_keys():
    assert (Recipe.of({}).epochs, Recipe.of({}).iterations, Recipe.of({}).val_iterations) == (
        1000,
        250,
        50,
    )
    assert Recipe.of({RECIPE: {"epochs": 7}}).epochs == 7
    with pytest.raises(ValueError, match=r"unknown key.*: epoch; known: epochs, iterations"):
        Recipe.of({RECIPE: {"epoch": 7}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": -1.0},
        {"layer_decay": 1.5},
        {"head_lr": 0.0},
        {"foreground": 1.1},
        {"schedule": "step"},
        {"encoder_lr": -0.1},
        {"drop_path": 1.0},
        {"ema": 1.0},
    ],
)
def test_impossible_recipes_are_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value!r}$"):
        Recipe(**wrong)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_learning_rate_rises_linearly_then_falls_to_nothing(schedule):
    recipe = Recipe(epochs=20, iterations=5, lr=0.4, warmup_iterations=10, schedule=schedule)
    rates = [finetune.learning_rate(iteration, recipe) for iteration in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02
    assert rates[55] == pytest.approx(0.4 * 0.5**0.9 if schedule == "poly" else 0.2)


@pytest.mark.parametrize(
    ("epochs", "iterations", "warmup"),
    [(1, 1, 1), (1, 100, 25), (10, 25, 50), (12, 100, 60), (8, 250, 100), (1000, 250, 2500)],
)
def test_the_warm_up_is_counted_in_iterations_in_short_trainings_too(epochs, iterations, warmup):
    recipe = Recipe(epochs=epochs, iterations=iterations, lr=1.0)
    assert recipe.warmup == warmup
    assert finetune.learning_rate(0, recipe) == 1 / warmup
    assert finetune.learning_rate(warmup - 1, recipe) == 1


def test_older_plans_count_the_warm_up_in_epochs():
    assert Recipe.of({RECIPE: {"warmup_epochs": 1.5, "iterations": 40}}).warmup == 60
    with pytest.raises(ValueError, match="in iterations or in epochs, got both"):
        Recipe(warmup_epochs=1, warmup_iterations=50)


def test_the_encoder_learns_slowly_where_it_was_pretrained_and_as_said_where_it_is_said():
    network = small_network()
    last = network.encoder.get_parameter("layers4.0.blocks.0.attn.qkv.weight")

    def scale(recipe: Recipe, pretrained: bool) -> float:
        groups = finetune.parameter_groups(network, recipe, pretrained)
        return next(
            group["lr_scale"] for group in groups if any(p is last for p in group["params"])
        )

    assert [scale(Recipe(), pretrained) for pretrained in (True, False)] == [0.3, 1.0]
    assert [scale(Recipe(encoder_lr=0.5), pretrained) for pretrained in (True, False)] == [0.5, 0.5]


def test_drop_path_and_average_follow_from_the_length_of_the_training():
    short, long = Recipe(epochs=10, iterations=100), Recipe()
    assert (short.stochastic_depth, long.stochastic_depth) == (0.0, 0.1)
    assert (short.average, long.average) == pytest.approx((0.99, 0.999))
    assert Recipe(drop_path=0.2, ema=0.0).stochastic_depth == 0.2
    assert Recipe(ema=0.0).average == 0


def test_the_checkpoints_drop_path_is_not_that_of_the_training(nnunet_env, monkeypatch, tmp_path):
    """Two pretrainings that differ by it only: one network."""
    built = []
    for rate in (0.0, 0.1):
        config = replace(ENCODER, drop_path=rate)
        monkeypatch.setenv(
            checkpoint_choice.VARIABLE, str(pretrained(tmp_path / str(rate), config))
        )
        plans = nnunet_plans()
        finetune.resolve_architecture(plans, "3d_fullres")
        resolved = finetune.resolve(plans, "3d_fullres")
        network = finetune.build_network(resolved, 1, 3, True, Recipe.of(plans).stochastic_depth)
        built.append((resolved["architecture"], network.encoder.config))
    assert built[0] == built[1]
    assert built[0][1].drop_path == 0.1


def small_network(deep_supervision: bool = True) -> SwinUNETR:
    torch.manual_seed(0)
    config = SwinConfig(2, embed_dim=6, depths=(1, 2, 3, 1), heads=(1, 1, 2, 2))
    return SwinUNETR(1, 2, deep_supervision, encoder=config.to_dict(), decoder="light")


def test_every_trained_parameter_is_in_one_group_with_its_layers_learning_rate():
    network, recipe = small_network(), Recipe(lr=1e-3, head_lr=10, encoder_lr=0.4, layer_decay=0.5)
    groups = finetune.parameter_groups(network, recipe)
    rate = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert (
        len(rate)
        == sum(len(group["params"]) for group in groups)
        == len(list(network.parameters()))
    )
    assert groups[0]["lr_scale"] == 1  # the one whose learning rate nnU-Net logs
    named = dict(network.named_parameters())
    rates = {name: rate[id(parameter)] for name, parameter in named.items()}
    assert rates["encoder.patch_embed.proj.weight"] == (0.4 * 0.5**7, 0.05)
    assert rates["encoder.layers1.0.blocks.0.attn.qkv.weight"] == (0.4 * 0.5**6, 0.05)
    assert rates["encoder.layers1.0.downsample.reduction.weight"][0] == 0.4 * 0.5**5
    assert rates["encoder.layers2.0.blocks.0.attn.qkv.weight"][0] == 0.4 * 0.5**5
    assert rates["encoder.layers3.0.blocks.2.norm1.weight"] == (0.4 * 0.5, 0.0)
    assert rates["encoder.layers4.0.blocks.0.attn.relative_position_bias_table"] == (0.4, 0.0)
    assert rates["encoder.layers4.0.downsample.reduction.weight"][0] == 0.4
    heads = {rate for name, rate in rates.items() if ".seg_layers." in name}
    assert heads == {(10, 0.0)}
    assert {scale for name, (scale, _) in rates.items() if name.startswith("decoder.")} == {1.0, 10}
    assert all(decay == 0 for name, (_, decay) in rates.items() if name.endswith("bias"))


def test_frozen_heads_are_left_out():
    groups = finetune.parameter_groups(small_network(deep_supervision=False), Recipe())
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def norm_of(network: SwinUNETR) -> float:
    """Of the gradient."""
    return float(torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm())


def test_the_schedule_needs_no_state_and_each_step_clips():
    network, recipe = small_network(), Recipe(epochs=10, lr=1e-3, clip=0.5)
    optimizer, schedule = finetune.optimise(network, recipe, torch.device("cpu"))
    schedule.step(7)
    assert optimizer.param_groups[0]["lr"] == finetune.learning_rate(7 * 250, recipe)
    assert all(
        g["lr"] == pytest.approx(g["lr_scale"] * optimizer.param_groups[0]["lr"])
        for g in optimizer.param_groups
    )
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert norm_of(network) == pytest.approx(0.5, rel=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == finetune.learning_rate(7 * 250 + 1, recipe)
    schedule.step(8)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == finetune.learning_rate(8 * 250, recipe)


@pytest.mark.parametrize("patch", [(20, 48, 40), (7, 33, 50), (64, 64)])
def test_nnunets_own_transform_makes_targets_of_the_outputs_sizes(patch):
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )

    resolved = {"patch_size": list(patch), "architecture": {"arch_kwargs": {"encoder": {}}}}
    targets = DownsampleSegForDSTransform(
        finetune.deep_supervision_scales(resolved)
    )._apply_to_segmentation(torch.zeros(1, *patch, dtype=torch.int16))
    assert [tuple(target.shape[1:]) for target in targets] == output_sizes(patch)
    weights = finetune.deep_supervision_weights(4)
    assert sum(weights) == pytest.approx(1)
    assert [w / weights[0] for w in weights] == [1, 0.5, 0.25, 0.125]


def test_first_the_plans_then_the_variable_then_the_only_one(nnunet_env, monkeypatch, tmp_path):
    assert checkpoint_choice.choose({}).default
    only = pretrained(nnunet_env["nnUNet_results"] / "nnssl" / "ct" / "smit__tiny")
    assert checkpoint_choice.choose({}).path == only
    variable = pretrained(tmp_path / "variable")
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(variable))
    assert checkpoint_choice.choose({}).path == variable
    plans = pretrained(tmp_path / "plans")
    assert checkpoint_choice.choose({"checkpoint_path": str(plans)}).path == plans


@pytest.mark.parametrize("where", ["results", "variable"])
def test_a_checkpoint_that_moved_is_found_by_its_hash(nnunet_env, monkeypatch, tmp_path, where):
    """As plans of another machine name it."""
    folder = (
        nnunet_env[checkpoint_choice.RESULTS] / "nnssl" / "other"
        if where == "results"
        else tmp_path / "elsewhere"
    )
    moved = pretrained(folder, seed=1)
    pretrained(nnunet_env[checkpoint_choice.RESULTS] / "nnssl" / "ct" / "smit__micro", seed=2)
    if where == "variable":
        monkeypatch.setenv(checkpoint_choice.VARIABLE, str(moved))
    choice = checkpoint_choice.choose(
        {"checkpoint_path": "/gone/checkpoint_final.pth", "sha256": files.sha256(moved)}
    )
    assert choice.path == moved
    assert "by its sha256: it is no longer at /gone/checkpoint_final.pth" in choice.named_by
    with pytest.raises(checkpoint_choice.NoCheckpointError, match="no file at /gone"):
        checkpoint_choice.choose(
            {"checkpoint_path": "/gone/checkpoint_final.pth", "sha256": "0" * 64}
        )


def test_several_are_an_error_that_lists_them_and_says_what_to_type(nnunet_env):
    both = [pretrained(nnunet_env["nnUNet_results"] / "nnssl" / name) for name in ("one", "two")]
    with pytest.raises(NoCheckpointError) as error:
        checkpoint_choice.choose({})
    assert all(str(path) in str(error.value) for path in both)
    assert "export nnssl_checkpoint=" in str(error.value)
    with pytest.raises(
        NoCheckpointError,
        match=r"no file at /gone.pth, the checkpoint named by the plans. Found instead",
    ):
        checkpoint_choice.choose({"checkpoint_path": "/gone.pth"})


def test_settling_writes_all_that_a_prediction_needs(nnunet_env, monkeypatch, tmp_path):
    path = pretrained(tmp_path)
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(path))
    plans = nnunet_plans(("CTNormalization", "ZScoreNormalization"))
    finetune.resolve_architecture(plans, "3d_fullres")
    path.unlink()
    network = finetune.build_network(
        finetune.resolve(plans, "3d_fullres"), 2, 3, deep_supervision=False
    )
    assert network.encoder.config == SwinConfig.from_dict(ENCODER.to_dict() | {"in_channels": 2})
    assert network.encoder.intensity.scale.tolist() == pytest.approx([140 / HU["sd"], 1.0])
    assert len(plans[INFO]["sha256"]) == 64
    finetune.resolve_architecture(plans, "3d_fullres")  # a resumed run: nothing to look for


def test_every_tensor_is_counted_and_a_changed_file_refused(nnunet_env, monkeypatch, tmp_path):
    path = pretrained(tmp_path)
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(path))
    plans = nnunet_plans()
    finetune.resolve_architecture(plans, "3d_fullres")
    network = finetune.build_network(
        finetune.resolve(plans, "3d_fullres"), 1, 3, deep_supervision=False
    )
    lines = "\n".join(finetune.load_named_checkpoint(network, plans))
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
        finetune.load_named_checkpoint(network, plans)


def test_a_3d_checkpoint_does_not_start_a_2d_network(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path)))
    plans = nnunet_plans()
    finetune.resolve_architecture(plans, "2d")
    network = finetune.build_network(finetune.resolve(plans, "2d"), 1, 3, deep_supervision=False)
    with pytest.raises(
        OriginError, match=r"pretrained in 3D, but this configuration is 2D(.|\n)*-c natural_tiny"
    ):
        finetune.load_named_checkpoint(network, plans)


def test_plans_without_a_checkpoint_load_none(nnunet_env):
    """Their network is ours (`nnssl_plan -a`), and its start random."""
    plans = nnunet_plans()
    plans["configurations"]["2d"]["architecture"] = architecture(
        plans, finetune.resolve(plans, "2d"), preset("tiny", 2), "light", None
    )
    finetune.resolve_architecture(plans, "2d")
    with pytest.raises(NoCheckpointError, match="name our network but no checkpoint"):
        finetune.load_named_checkpoint(small_network(), plans)


def test_a_resumed_model_is_that_of_its_own_checkpoint(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "then")))
    then, now = nnunet_plans(), nnunet_plans()
    finetune.resolve_architecture(then, "3d_fullres")
    other = SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "now", other)))
    finetune.resolve_architecture(now, "3d_fullres")
    resolved = finetune.resolve(now, "3d_fullres")
    finetune.restore_plans(now, resolved, "3d_fullres", then)
    assert now == then
    assert resolved["architecture"]["arch_kwargs"]["encoder"] == ENCODER.to_dict()
    del then[INFO]  # of a random start
    finetune.restore_plans(now, resolved, "3d_fullres", then)
    assert INFO not in now


def of_fold(sha256: str | None = "a") -> dict:
    """Plans of a fold from this checkpoint; None: from none."""
    plans = nnunet_plans() | ({INFO: {"sha256": sha256}} if sha256 else {})
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"decoder": "light", "encoder": OLDER}
    return plans


def of_network(**arguments: object) -> dict:
    """An entry `architecture` with these arguments of the network, else as in `of_fold`."""
    return {"arch_kwargs": {"decoder": "light", "encoder": OLDER, **arguments}}


UNEVEN = replace(ENCODER, steps=((1, 2, 2), *((2, 2, 2),) * 4))
LIGHT = [16, *(ENCODER.embed_dim * 2**number for number in range(4))]  # its default widths
OLDER = {key: value for key, value in ENCODER.to_dict().items() if key != "steps"}


@pytest.fixture
def trained_model(tmp_path) -> Path:
    """A model's folder whose fold 0 was trained to the end, by `of_fold()`."""
    files.write_json(tmp_path / "plans.json", of_fold())
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    return tmp_path


def test_folds_of_different_pretrainings_are_not_mixed(tmp_path, trained_model):
    finetune.refuse_mixed_folds(tmp_path / "none", 0, of_fold(), "3d_fullres")
    finetune.refuse_mixed_folds(trained_model, 1, of_fold(), "3d_fullres")
    # this very fold, trained again
    finetune.refuse_mixed_folds(trained_model, 0, of_fold("b"), "3d_fullres")
    with pytest.raises(OriginError, match=r"fold_0, trained from the checkpoint with sha256 a"):
        finetune.refuse_mixed_folds(trained_model, 1, of_fold("b"), "3d_fullres")
    with pytest.raises(OriginError, match="this run has plans without a checkpoint"):
        finetune.refuse_mixed_folds(trained_model, 1, of_fold(None), "3d_fullres")


@pytest.mark.parametrize(
    ("key", "value", "differs"),
    [
        ("spacing", [3.0, 2.0, 2.0], "spacing"),
        ("normalization_schemes", ["ZScoreNormalization"], "normalization_schemes"),
        ("architecture", {"network_class_name": "Swin"}, "architecture"),
        ("architecture", {"of_a_later_version": 1}, None),
        ("architecture", of_network(decoder={"name": "light", "norm": "space"}), None),
        ("architecture", of_network(decoder={"name": "light", "of_a_later_version": 1}), None),
        ("architecture", of_network(image_skip="mapped"), None),
        ("architecture", of_network(decoder={"name": "light", "norm": "dataset"}), "architecture"),
        ("architecture", of_network(decoder={"name": "light", "widths": LIGHT}), None),
        ("architecture", of_network(decoder={"name": "light", "widths": [8] * 5}), "architecture"),
        ("architecture", of_network(image_skip="raw"), "architecture"),
        ("architecture", of_network(axes=[2, 0, 1]), "architecture"),
        ("architecture", of_network(encoder=ENCODER.to_dict()), None),
        ("architecture", of_network(encoder=UNEVEN.to_dict()), "architecture"),
        ("architecture", {"arch_kwargs": {"decoder": {"name": "nnunet"}}}, "architecture"),
        ("patch_size", [32, 32, 32], None),
    ],
)
def test_folds_of_different_networks_or_data_are_not_mixed(trained_model, key, value, differs):
    plans = of_fold()
    entry = plans["configurations"]["3d_fullres"]
    entry[key] = entry[key] | value if isinstance(value, dict) else value
    if differs is None:
        finetune.refuse_mixed_folds(trained_model, 1, plans, "3d_fullres")
        return
    with pytest.raises(OriginError, match=f"of another network or other data.*: {differs}. Create"):
        finetune.refuse_mixed_folds(trained_model, 1, plans, "3d_fullres")


def test_folds_in_training_count(trained_model):
    """On a cluster all folds are trained at once."""
    final = trained_model / "fold_0" / "checkpoint_final.pth"
    final.rename(final.with_name("checkpoint_latest.pth"))
    with pytest.raises(OriginError, match=r"fold_0, trained from .* remove its folder"):
        finetune.refuse_mixed_folds(trained_model, 1, of_fold("b"), "3d_fullres")


def test_folds_with_and_without_mirroring_are_not_mixed(trained_model):
    """nnU-Net predicts by the mirroring of the first fold."""
    finetune.refuse_mixed_folds(
        trained_model, 1, of_fold() | {RECIPE: {"mirror": True}}, "3d_fullres"
    )
    plans = of_fold() | {RECIPE: {"mirror": False}}
    with pytest.raises(OriginError, match="fold_0, trained with mirroring, but this run is w"):
        finetune.refuse_mixed_folds(trained_model, 1, plans, "3d_fullres")
    finetune.refuse_mixed_folds(trained_model, 0, plans, "3d_fullres")
    files.write_json(trained_model / "plans.json", plans)
    finetune.refuse_mixed_folds(trained_model, 1, plans, "3d_fullres")


def test_a_training_stops_where_nnunets_plans_have_changed_beneath_its_own(tmp_path):
    """Its data are shared with them, and may have been preprocessed again."""
    base, own = nnunet_plans(), nnunet_plans() | {"plans_name": "own"}
    for name, content in (("nnUNetPlans", base), ("own", own | {RECIPE: {}})):
        files.write_json(tmp_path / f"{name}.json", content)
    base["configurations"]["2d"]["spacing"] = [2.0, 2.0]  # of another configuration
    files.write_json(tmp_path / "nnUNetPlans.json", base)
    finetune.require_same_data(tmp_path, own, "3d_fullres")
    finetune.require_same_data(tmp_path, own, "3d_cascade_fullres")
    base["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.4
    base["configurations"]["3d_fullres"]["batch_size"] = 9  # nothing of the data
    files.write_json(tmp_path / "nnUNetPlans.json", base)
    finetune.require_same_data(tmp_path, base, "3d_fullres")  # nnU-Net's own
    said = "plans own use the data of nnUNetPlans, which have been planned again.*: intensities ch"
    for configuration in ("3d_fullres", "3d_cascade_fullres"):
        with pytest.raises(ValueError, match=said):
            finetune.require_same_data(tmp_path, own, configuration)
    # residual encoders share the data of `nnUNetPlans`, which may be older than theirs
    residual = nnunet_plans() | {"plans_name": "nnUNetResEncUNetLPlans"}
    files.write_json(tmp_path / "nnUNetResEncUNetLPlans.json", residual)
    files.write_json(tmp_path / "splits_final.json", [])
    finetune.require_same_data(tmp_path, own, "3d_fullres")
    (tmp_path / "nnUNetResEncUNetLPlans.json").unlink()
    (tmp_path / "nnUNetPlans.json").unlink()
    finetune.require_same_data(tmp_path, own, "3d_fullres")


def test_plans_moved_here_without_a_new_name_are_recognised(tmp_path):
    """They name the data of nnU-Net's plans, which here are those of another dataset."""
    moved = nnunet_plans() | {"plans_name": "smitA", RECIPE: {}}
    moved["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.4
    files.write_json(tmp_path / "nnUNetPlans.json", nnunet_plans())
    remedies = "-tp NAME.*: repeat nnUNetv2_preprocess -d .* -plans_name nnUNetPlans"
    with pytest.raises(ChangedPlansError, match=remedies):
        finetune.require_same_data(tmp_path, moved, "3d_fullres")


def test_a_checkpoint_where_this_user_may_not_look_is_searched_by_its_hash(
    nnunet_env, monkeypatch, tmp_path
):
    """Plans of somebody else, who keeps the home to himself: `Path.is_file` raises there."""
    moved = pretrained(tmp_path)
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(moved))
    private, look = "/private/checkpoint_final.pth", Path.is_file

    def is_file(path: Path) -> bool:
        if str(path).startswith(private):
            raise PermissionError(path)
        return look(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    choice = checkpoint_choice.choose({"checkpoint_path": private, "sha256": files.sha256(moved)})
    assert choice.path == moved
