"""A plans file and the network it names: resolved before a training, restored from a model's own
checkpoint after it.
"""

from __future__ import annotations

from nnssl import checkpoint
from nnssl.finetune.architecture import DECODER, INFO, architecture, is_ct, is_ours, steps_of
from nnssl.finetune.checkpoint_choice import (
    CheckpointChoice,
    OriginError,
    choose,
    pretrain_info,
    require_recorded_hash,
)
from nnssl.network.layers import halving_weights
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.recipe import OF_LORA, RECIPE, Recipe
from nnssl.shapes import round_up
from nnssl.types import BASE


def resolve_architecture(plans: dict, name: str) -> None:
    """Write into `plans` which network configuration `name` is to be built as, unless they say so
    already. Raises NoCheckpointError, CheckpointError, OriginError.
    """
    resolved = resolve(plans, name)
    if is_ours(resolved):
        return
    dims = len(resolved["patch_size"])
    choice = choose(plans.get(INFO, {}), dims=dims, is_ct=is_ct(plans))
    loaded = opened(choice)
    plans[INFO] = {**plans.get(INFO, {}), **pretrain_info(choice, loaded)}
    decoder = loaded.decoder or DECODER
    plans["configurations"][name]["architecture"] = architecture(
        plans, resolved, loaded.encoder_config, decoder, loaded.hu
    )


def require_architecture(resolved: dict, why_not: Exception | None) -> None:
    """Raise the stored error of `resolve_architecture`, now that the network is needed."""
    if not is_ours(resolved):
        raise why_not or OriginError("these plans name a network of another package")


def require_nnunets_network(plans: dict, name: str) -> None:
    """Raises ValueError where configuration `name` of `plans` names our network."""
    if is_ours(resolve(plans, name)):
        raise ValueError(
            f"plans {plans['plans_name']} name the network of nnssl-swin, but this trainer trains "
            f"nnU-Net's own: train with -p {BASE}, or with a copy of {BASE}.json under another "
            f'name ("plans_name" as well) with the entry {RECIPE} of these plans, for as many '
            "iterations. The same network from a random start is -tr SwinScratchTrainer"
        )


def restore_plans(plans: dict, resolved: dict, name: str, saved: dict) -> None:
    """Take network and pretraining from `saved`, the plans in the model's own checkpoint, in place.

    So neither a resumed training nor a validation needs the file of the pretraining, nor minds a
    newer one. Of the recipe the settings of LoRA belong to the network: the saved factors have
    their rank, and their sum with a matrix its scale.
    """
    plans.pop(INFO, None)
    if INFO in saved:
        plans[INFO] = saved[INFO]
    ours, theirs = _of_lora(plans), _of_lora(saved)
    if ours != theirs:
        plans[RECIPE] = plans.get(RECIPE, {}) | theirs
    entry = resolve(saved, name)["architecture"]
    plans["configurations"][name]["architecture"] = resolved["architecture"] = entry


def describe_restored(plans: dict, saved: dict) -> list[str]:
    """Lines for the log: what a continued model of the plans `saved` was started from, and whether
    `plans` now name something else. Before `restore_plans`.
    """
    ours, theirs = _initial_weights(plans), _initial_weights(saved)
    lines = [f"This model was started from {theirs}"]
    if ours != theirs:
        lines.append(
            f"WARNING: plans {plans['plans_name']} now name {ours}. To train from that, give the "
            "plans another name (nnssl_plan ... --name NAME) and train with -p NAME"
        )
    return lines


def _initial_weights(plans: dict) -> str:
    info = plans.get(INFO, {})
    if not info.get("sha256"):
        return "plans without a checkpoint"
    return f"{info.get('checkpoint_path')} (sha256 {info['sha256']})"


def _of_lora(plans: dict) -> dict:
    recipe = plans.get(RECIPE, {})
    return {key: recipe.get(key, getattr(Recipe, key)) for key in OF_LORA}


def resolve(plans: dict, name: str) -> dict:
    """A configuration of the plans, its inheritance resolved; a copy."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_configuration(name).configuration


def build_network(
    resolved: dict,
    input_channels: int,
    classes: int,
    deep_supervision: bool,
    drop_path: float = 0.0,
) -> SwinUNETR:
    """The network that a resolved configuration names; `drop_path` is the training's, whatever the
    pretraining had.
    """
    arguments = dict(resolved["architecture"]["arch_kwargs"])
    arguments["encoder"] = {**arguments["encoder"], "drop_path": drop_path}
    return SwinUNETR(input_channels, classes, deep_supervision, **arguments)


def round_patch(plans: dict, name: str) -> None:
    """Raise the patch of configuration `name` to multiples of 8, in place: Primus cuts it into
    cubes of 8 voxels. Raises ValueError in 2D, which Primus does not have.
    """
    patch = resolve(plans, name)["patch_size"]
    if len(patch) != 3:
        raise ValueError(
            f"Primus is a 3D network, and {name} has patches of {tuple(patch)}; train 3d_fullres"
        )
    plans["configurations"][name]["patch_size"] = list(round_up(patch, [8] * 3))


def cascaded_labels(resolved: dict, input_channels: int) -> int:
    """How many of the `input_channels` are the one-hot labels of a cascade's previous stage: those
    without a scheme.
    """
    return input_channels - len(resolved["normalization_schemes"])


def deep_supervision_scales(resolved: dict) -> list[list[float]]:
    """The size of each output over that of the configuration's patch, by axis; exact where a size
    is odd.
    """
    patch = resolved["patch_size"]
    sizes = output_sizes(patch, steps_of(resolved))
    return [[m / n for m, n in zip(size, patch, strict=True)] for size in sizes]


def deep_supervision_weights(outputs: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... over their sum. All count: an output without a loss would leave a head
    without a gradient.
    """
    weights = halving_weights(outputs)
    return tuple(weight / sum(weights) for weight in weights)


def opened(choice: CheckpointChoice) -> checkpoint.Checkpoint:
    loaded = checkpoint.load(choice.path)
    require_recorded_hash(choice, loaded.sha256)
    return loaded
