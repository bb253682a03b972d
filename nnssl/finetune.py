"""What our nnU-Net trainers share: which network, which weights, which optimiser. The trainers only call it.

__init__         settle    -> the plans say which network; nnU-Net saves them beside the model
initialize       load      -> the encoder's weights, all of them or none
                 optimise  -> AdamW by layer, the learning rate a closed form of the epoch
load_checkpoint  adopt     -> a resumed or validated model is that of its own checkpoint, not of today's plans
"""

from __future__ import annotations

import os
from itertools import accumulate
from math import ceil, cos, pi
from pathlib import Path

import torch
from torch import nn

from nnssl import checkpoint, files
from nnssl.encoder.presets import preset
from nnssl.memory import keep_freed_memory
from nnssl.network.origin import Choice, NoCheckpointError, OriginError, check, choose, demand, pretrain_info
from nnssl.network.planned import INFO, Recipe, architecture, describe_map, is_ours, steps_of
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.types import FINAL

DECODER = "swinunetr"
PRESET = "smit"  # of a random start without any checkpoint
HEADS = ".seg_layers."  # in the names of the layers that give the logits
PARTS = 5  # of the encoder: the patch embedding and four stages
BETAS = (0.9, 0.98)  # as nnU-Net's own transformer trainers


def settle(plans: dict, name: str, random_start: bool) -> None:
    """Write into `plans` which network configuration `name` is to be built as, unless they say so already.

    Without a checkpoint, and with `random_start` only, it is that of preset smit on nnU-Net's own intensities.
    Raises NoCheckpointError, CheckpointError, OriginError.
    """
    resolved = resolve(plans, name)
    if is_ours(resolved):
        return
    choice = choose(plans.get(INFO, {}))
    if choice is None and random_start:
        encoder, hu = preset(PRESET), None
    else:
        loaded = _open(demand(choice))
        encoder, hu = loaded.encoder_config, loaded.hu
        plans[INFO] = {**plans.get(INFO, {}), **pretrain_info(choice, loaded)}
    plans["configurations"][name]["architecture"] = architecture(plans, resolved, encoder, DECODER, hu)


def demand_settled(resolved: dict, why_not: Exception | None) -> None:
    """Raise what kept `settle` from its work, now that the network is needed."""
    if not is_ours(resolved):
        raise why_not


def adopt(plans: dict, resolved: dict, name: str, saved: dict) -> None:
    """Take network and pretraining from `saved`, the plans in the model's own checkpoint, in place.

    So neither a resumed training nor a validation needs the file of the pretraining, nor minds a newer one.
    """
    if INFO in saved:
        plans[INFO] = saved[INFO]
    entry = resolve(saved, name)["architecture"]
    plans["configurations"][name]["architecture"] = resolved["architecture"] = entry


def resolve(plans: dict, name: str) -> dict:
    """A configuration of the plans, its inheritance resolved; a copy."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_configuration(name).configuration


def build(resolved: dict, input_channels: int, classes: int, deep_supervision: bool) -> SwinUNETR:
    """The network that a settled configuration names."""
    return SwinUNETR(input_channels, classes, deep_supervision, **resolved["architecture"]["arch_kwargs"])


def load(network: SwinUNETR, plans: dict, labels: int = 0) -> list[str]:
    """Load the encoder that the settled `plans` name; lines for the log. The counts go into the plans.

    labels: how many of the network's last input channels are a cascade's labels (`cascaded_labels`).
    Raises NoCheckpointError, CheckpointError, OriginError, TransferError; then nothing was loaded.
    """
    info = plans.get(INFO, {})
    if not info.get("checkpoint_path"):
        raise NoCheckpointError(
            "these plans name our network but no checkpoint: train them with -tr SwinScratchTrainer, or make plans "
            "from one: nnssl_plan -d DATASET -c PATH_TO_CHECKPOINT --name NAME"
        )
    loaded = _open(choose(info))
    theirs, ours = loaded.encoder_config.spatial_dims, network.encoder.config.spatial_dims
    if theirs != ours:
        raise OriginError(
            f"{loaded.path} was pretrained in {theirs}D, this configuration is {ours}D: train a {theirs}D one, "
            f"pretrain in {ours}D (nnssl_pretrain --dims {ours}), or use -tr SwinScratchTrainer"
        )
    done = checkpoint.transfer(loaded, network.encoder, labels)
    info.update(sha256=loaded.sha256, matched=done.matched, total=done.total)
    return [
        f"Pretrained weights: {loaded.path} (method {loaded.method}, sha256 {loaded.sha256})",
        f"  named by {info.get('named_by', 'the plans')}",
        f"  {done.matched} of {done.total} encoder tensors matched",
        *(f"  {name}: {reason}" for name, reason in done.explained.items()),
    ]


def cascaded_labels(resolved: dict, input_channels: int) -> int:
    """How many of the `input_channels` are the one-hot labels of a cascade's previous stage: those without a scheme."""
    return input_channels - len(resolved["normalization_schemes"])


def random_start(plans: dict) -> list[str]:
    """Lines for the log of a training that loads nothing."""
    named = plans.get(INFO, {}).get("checkpoint_path")
    source = f"as in {named}, whose weights are not loaded" if named else "as the plans say; no checkpoint is named"
    return [f"Random start: encoder and intensities {source}"]


def intensities(resolved: dict, info: dict) -> list[str]:
    """Lines for the log: what becomes of the image's values, and where the pretraining saw another spacing."""
    lines = describe_map(resolved["architecture"]["arch_kwargs"].get("intensity"), info)
    others = sorted(set(resolved["normalization_schemes"]) - {"CTNormalization"})
    if info.get("hu") and others:
        lines.append(f"  channels of {', '.join(others)} pass as they are, though the pretraining saw HU")
    if info.get("spacing"):
        axes = resolved["architecture"]["arch_kwargs"].get("axes") or range(len(resolved["spacing"]))
        here = [spacing for _, spacing in sorted(zip(axes, resolved["spacing"], strict=True))]
        lines.append(f"Spacing (as read): {_round(here)} mm here, {_round(info['spacing'])} mm in the pretraining")
    return lines


def refuse_mixed_folds(model: Path | str, fold: int | str, info: dict) -> None:
    """Raises OriginError when other folds in this model's folder came from another checkpoint than this run's.

    plans.json is shared by the folds, and an ensemble of different pretrainings should be somebody's decision.
    """
    model = Path(model)
    others = [path for path in model.glob(f"fold_*/{FINAL}") if path.parent.name != f"fold_{fold}"]
    if not others or not (model / "plans.json").is_file():
        return
    before = files.read_json(model / "plans.json").get(INFO, {}).get("sha256")
    if before != info.get("sha256"):
        raise OriginError(
            f"{model} holds {len(others)} fold(s) trained from the checkpoint with sha256 {before}, this run has "
            f"{info.get('sha256')}. Give each pretraining its plans: nnssl_plan -d DATASET -c CHECKPOINT --name NAME, "
            "and train with -p NAME"
        )


def parameter_groups(network: SwinUNETR, recipe: Recipe) -> list[dict]:
    """AdamW's groups, the decoder's first: each with `lr_scale`, its share of the learning rate, and weight_decay.
    `part` is 0 for the decoder, 1 to 4 for stages 4 to 1, 5 for the patch embedding: the order of `Unfreezing`.

    The share falls by `layer_decay` from the decoder to the last block, and so on down to the patch embedding
    (Clark et al. 2020; Bao et al. 2022). Norms, biases, position biases and the heads do not decay.

    The heads' is `head_lr`: Adam moves a weight by the learning rate a step, whatever its gradient, and a head that
    reads a dozen normalised channels is sure of a class only with weights of several units. At the decoder's rate
    that takes thousands of steps, in which all is background.
    """
    depths = network.encoder.config.depths
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    last_first = reversed(list(network.named_parameters()))
    for name, parameter in sorted(last_first, key=lambda named: HEADS in named[0]):  # nnU-Net logs the first one's
        if not parameter.requires_grad:
            continue
        head, layer = HEADS in name, layer_of(name, depths)
        scale = recipe.head_lr if head else recipe.layer_decay ** (sum(depths) + 1 - layer)
        decays = parameter.ndim > 1 and not head and not name.endswith("relative_position_bias_table")
        part = PARTS - sum(layer > below for below in accumulate((0, *depths)))
        groups.setdefault((scale, recipe.weight_decay if decays else 0.0, part), []).append(parameter)
    return [
        {"params": parameters, "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay, "part": part}
        for (scale, decay, part), parameters in groups.items()
    ]


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """0 for the patch embedding, 1 to n for the n blocks, n + 1 for the decoder.

    A merge and a stage's convolutions belong to the block after, the norm of a stage's map to the block before.
    """
    words = name.split(".")
    if words[0] != "encoder":
        return sum(depths) + 1
    if words[1] == "out_norms":
        return sum(depths[: int(words[2]) + 1])
    if not words[1].startswith("layers"):
        return 0
    stage = int(words[1].removeprefix("layers").removesuffix("c"))
    before = sum(depths[: stage - 1])
    if words[1].endswith("c"):
        return before + 1
    if words[3] == "blocks":
        return before + int(words[4]) + 1
    return min(before + depths[stage - 1] + 1, sum(depths))


class Schedule:
    """Sets each group's learning rate from the epoch alone: nnU-Net saves no state of it."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe):
        self.optimizer, self.recipe = optimizer, recipe

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(epoch, self.recipe) * group["lr_scale"]


class Unfreezing(Schedule):
    """The decoder first, then stage 4, 3, 2, 1 and the patch embedding, `recipe.unfreeze` epochs one after another.

    What is frozen has the learning rate 0, to which AdamW's decay is proportional: it stays bit by bit. It is not
    taken out of the graph, so that DDP and torch.compile have one graph throughout, and Adam knows the size of a
    gradient when its turn comes. The price is that an epoch takes as long as that of a full fine-tuning.
    """

    def step(self, epoch: int) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if epoch < group["part"] * self.recipe.unfreeze:
                group["lr"] = 0.0


def unfreezing(recipe: Recipe) -> str:
    """Line for the log: when each part begins to learn."""
    names = ("decoder", "stage 4", "stage 3", "stage 2", "stage 1", "patch embedding")
    epochs = (f"{name} from epoch {ceil(part * recipe.unfreeze)}" for part, name in enumerate(names))
    return f"Gradual unfreezing: {', '.join(epochs)} of {recipe.epochs}"


def freeze(network: SwinUNETR) -> None:
    """No gradient for the encoder. Before DDP wraps the network, which waits for those that it finds then."""
    network.encoder.requires_grad_(False)


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """Of the decoder: linear up to `recipe.lr` during the warm-up, then down to 0 at the last epoch's end."""
    warmup = min(recipe.warmup, recipe.epochs)
    if epoch + 1 <= warmup:
        return recipe.lr * (epoch + 1) / warmup
    progress = min(1.0, (epoch - int(warmup)) / max(1, recipe.epochs - int(warmup)))
    return recipe.lr * ((1 - progress) ** 0.9 if recipe.schedule == "poly" else (1 + cos(pi * progress)) / 2)


def optimise(network: SwinUNETR, recipe: Recipe, device: torch.device) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW and its schedule; the gradient is clipped to `recipe.clip` as a part of each step.

    A hook clips, because nnU-Net's own `train_step` clips to a fixed 12, which the hook then undercuts. What has the
    learning rate 0 does not count.
    """
    groups = parameter_groups(network, recipe)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, fused=device.type in ("cpu", "cuda"))

    def clip(*_) -> None:
        learning = [p for group in optimizer.param_groups if group["lr"] > 0 for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(learning, recipe.clip)

    optimizer.register_step_pre_hook(clip)
    return optimizer, Schedule(optimizer, recipe)


def deep_supervision_scales(resolved: dict) -> list[list[float]]:
    """The size of each output over that of the configuration's patch, by axis; exact where a size is odd."""
    patch = resolved["patch_size"]
    return [[m / n for m, n in zip(size, patch, strict=True)] for size in output_sizes(patch, steps_of(resolved))]


def deep_supervision_weights(outputs: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... over their sum. All count: an output without a loss would leave a head without a gradient."""
    weights = [0.5**i for i in range(outputs)]
    return tuple(weight / sum(weights) for weight in weights)


def prepare_cpu() -> None:
    """Freed memory is kept, and OMP_NUM_THREADS counts: nnU-Net takes every processor it sees, allotted or not."""
    keep_freed_memory()
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        torch.set_num_threads(int(threads))


def bare(network: nn.Module) -> SwinUNETR:
    """The network itself, out of what DDP and torch.compile wrap it in."""
    network = getattr(network, "module", network)
    return getattr(network, "_orig_mod", network)


def _open(choice: Choice) -> checkpoint.Checkpoint:
    loaded = checkpoint.load(choice.path)
    check(choice, loaded.sha256)
    return loaded


def _round(numbers: list[float]) -> list[float]:
    return [round(number, 2) for number in numbers]
