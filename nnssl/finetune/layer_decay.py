"""AdamW by layer, with its schedule."""

from __future__ import annotations

import os
from itertools import accumulate, chain
from typing import NamedTuple, cast

import torch
from torch import nn

from nnssl.finetune.schedule import Schedule
from nnssl.host_memory import keep_freed_memory
from nnssl.network.layers import HEADS
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.recipe import Recipe

PARTS = 5  # of the encoder: the patch embedding and four stages
BETAS = (0.9, 0.98)  # as nnU-Net's own transformer trainers
OF_RECIPE = ("lr_scale", "weight_decay")  # entries of a group


def parameter_groups(network: SwinUNETR, recipe: Recipe, pretrained: bool = True) -> list[dict]:
    """AdamW's groups, the decoder's first: each with `lr_scale`, its fraction of the learning rate,
    and weight_decay. `part` is 0 for the decoder, 1 to 4 for stages 4 to 1, 5 for the patch
    embedding: the order of `Unfreezing`.

    The encoder's last block has `encoder_lr` of the decoder's rate (`Recipe.encoder_scale`: less
    where it is `pretrained`), and each one below has `layer_decay` of that of the next, down to the
    patch embedding (Clark et al. 2020; Bao et al. 2022). Norms, biases, position biases and the
    heads do not decay.

    The heads' is `head_lr`: Adam moves a weight by the learning rate per step, whatever its
    gradient, and a head that reads a dozen normalised channels is sure of a class only with weights
    of several units. At the decoder's rate that takes thousands of steps, in which all is
    background.
    """
    rules = _Rules(network.encoder.config.depths, recipe, recipe.encoder_scale(pretrained))
    return [
        {
            "params": parameters,
            "lr": recipe.lr * scale,
            "lr_scale": scale,
            "weight_decay": decay,
            "part": part,
        }
        for (scale, decay, part), parameters in _grouped(network, rules).items()
    ]


def _grouped(network: SwinUNETR, rules: _Rules) -> dict[tuple, list[nn.Parameter]]:
    """By (lr_scale, weight_decay, part), the decoder's without its heads first."""
    groups: dict[tuple, list[nn.Parameter]] = {}
    last_first = reversed(list(network.named_parameters()))
    # nnU-Net logs the first one's
    for name, parameter in sorted(last_first, key=lambda named: HEADS in named[0]):
        if parameter.requires_grad:
            groups.setdefault(rules.key(name, parameter), []).append(parameter)
    return groups


class _Rules(NamedTuple):
    """The optimiser settings of a parameter, by its name."""

    depths: tuple[int, ...]
    recipe: Recipe
    encoder_scale: float

    def key(self, name: str, parameter: nn.Parameter) -> tuple[float, float, int]:
        return self.lr_scale(name), self.weight_decay(name, parameter), self.part(name)

    def lr_scale(self, name: str) -> float:
        if HEADS in name:
            return self.recipe.head_lr
        below = sum(self.depths) - layer_of(name, self.depths)  # -1 for the decoder
        return 1.0 if below < 0 else self.encoder_scale * self.recipe.layer_decay**below

    def weight_decay(self, name: str, parameter: nn.Parameter) -> float:
        matrix = parameter.ndim > 1 and not name.endswith("relative_position_bias_table")
        return self.recipe.weight_decay if matrix and HEADS not in name else 0.0

    def part(self, name: str) -> int:
        layer = layer_of(name, self.depths)
        return PARTS - sum(layer > below for below in accumulate((0, *self.depths)))


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """0 for the patch embedding, 1 to n for the n blocks, n + 1 for the decoder.

    A merge and a stage's convolutions belong to the block after, the norm of a stage's map to the
    block before.
    """
    top, part, *inner = name.split(".")
    if top != "encoder":
        return sum(depths) + 1
    if part == "out_norms":
        return sum(depths[: int(inner[0]) + 1])
    return _layer_in_stage(part, inner, depths) if part.startswith("layers") else 0


def _layer_in_stage(part: str, inner: list[str], depths: tuple[int, ...]) -> int:
    stage = int(part.removeprefix("layers").removesuffix("c"))
    before = sum(depths[: stage - 1])
    if part.endswith("c"):
        return before + 1
    if inner[1] == "blocks":
        return before + int(inner[2]) + 1
    return min(before + depths[stage - 1] + 1, sum(depths))


class LayeredAdamW(torch.optim.AdamW):
    """AdamW by layer. `refusal` says why the moments of a loaded state were not taken."""

    refusal = ""


def optimise(
    network: SwinUNETR,
    recipe: Recipe,
    device: torch.device,
    pretrained: bool = True,
    schedule: type[Schedule] = Schedule,
) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW and its schedule; the gradient is clipped to `recipe.clip` as a part of each step.

    A hook clips, because nnU-Net's own `train_step` clips to a fixed 12, which the hook then
    undercuts. Parameters with learning rate 0 are excluded. A state that is loaded brings its
    moments, while rates and decay remain those of `recipe`. Where the groups of the saved recipe
    are others no moments are loaded: `require_moments_loaded` before a training continues.
    """
    groups = parameter_groups(network, recipe, pretrained)
    fused = device.type in ("cpu", "cuda")
    optimizer = LayeredAdamW(groups, lr=recipe.lr, betas=BETAS, fused=fused)
    scheduled = schedule(optimizer, recipe)  # its hook goes first: the clipping needs the rates
    optimizer.register_step_pre_hook(lambda *_: _clip_gradient(optimizer, recipe.clip))
    optimizer.register_load_state_dict_pre_hook(_with_own_recipe)
    return optimizer, scheduled


def _with_own_recipe(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """`state` with the rates and the decay of the optimiser's own groups: the plans may have been
    made again since it was saved. Its moments are left out where they belong to other groups, since
    a validation does not need them.
    """
    optimizer = cast("LayeredAdamW", optimizer)
    ours, saved = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in ours] != [len(group["params"]) for group in saved]:
        optimizer.refusal = (
            f"the recipe in the plans makes {len(ours)} groups of parameters, but this training "
            f"was saved with {len(saved)} other ones. A training can be continued with other "
            "rates, but --weight-decay and --encoder-lr cannot change from or to 0, nor "
            "--layer-decay and --head-lr from or to 1. Repeat nnssl_plan with their former "
            "values, or start this fold again without --c"
        )
        return state | {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.refusal = ""
    groups = [
        there | {key: here[key] for key in OF_RECIPE}
        for here, there in zip(ours, saved, strict=True)
    ]
    return state | {"param_groups": groups}


def require_moments_loaded(optimizer: torch.optim.Optimizer | None) -> None:
    """Raises ValueError where the state that `optimizer` was given is of other groups."""
    if isinstance(optimizer, LayeredAdamW) and optimizer.refusal:
        raise ValueError(optimizer.refusal)


def _clip_gradient(optimizer: torch.optim.Optimizer, most: float) -> None:
    learning = (group["params"] for group in optimizer.param_groups if group["lr"] > 0)
    torch.nn.utils.clip_grad_norm_([*chain.from_iterable(learning)], most)


def describe_recipe(recipe: Recipe, pretrained: bool) -> str:
    """Line for the log: the resolved recipe of this training."""
    return (
        f"Recipe: {recipe.total} iterations, {recipe.warmup} of them warm-up; learning rate "
        f"{recipe.lr:g}, scaled by {recipe.encoder_scale(pretrained):g} for the encoder (layer "
        f"decay {recipe.layer_decay:g}) and by {recipe.head_lr:g} for the heads; weight decay "
        f"{recipe.weight_decay:g}; drop path {recipe.stochastic_depth:g}; average of the weights "
        f"{recipe.average or 'off'}"
    )


def prepare_cpu() -> None:
    """Keep freed memory, and respect OMP_NUM_THREADS: nnU-Net uses every processor it sees,
    allotted or not.
    """
    keep_freed_memory()
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        torch.set_num_threads(int(threads))
