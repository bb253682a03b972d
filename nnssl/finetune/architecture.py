"""What a plans file says of the network and its training: `architecture`, `pretrain_info` and
`nnssl_recipe`.

A configuration's `architecture` is nnU-Net's own entry, with our class: {"network_class_name",
"arch_kwargs", "_kw_requires_import"}. `pretrain_info` is upstream's entry for a pretrained
checkpoint, with its hash. `nnssl_recipe` holds the numbers of the training; one that is left out
takes its default. `nnssl_plan` tells how the plans were made, and nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from math import ceil

from nnssl.encoder.config import OWN, SwinConfig
from nnssl.finetune.strides import steps_for
from nnssl.network.decoders import full_options
from nnssl.types import NETWORK_CLASS, HUPolicy, Shape

INFO, RECIPE, PLANNED = "pretrain_info", "nnssl_recipe", "nnssl_plan"
DECODER = "swinunetr"  # where none is named and none was pretrained
NAME, BASE = "nnUNetSwinPlans", "nnUNetPlans"  # of our plans, and of nnU-Net's own
LONG = 5000  # iterations, from which on a training is regularised by stochastic depth
# with it the published rates, about 1e-4, are met at a decoder's 5e-4; nnU-Net's own: 0.1 to 0.33
PRETRAINED_LR = 0.3


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned; the entry `nnssl_recipe` of the plans."""

    epochs: int = 1000  # nnU-Net's own, as the next two
    iterations: int = 250  # an epoch
    val_iterations: int = 50
    foreground: float = 0.33  # fraction of the patches that are drawn around some labelled voxel
    # augment by reflections and predict with them; not for labels that tell left from right
    mirror: bool = True
    lr: float = 5e-4  # of the decoder, AdamW
    # of the heads to logits, over that of the decoder (experiments.md: what it changes)
    head_lr: float = 30.0
    # of the encoder's last block, over that of the decoder; None: PRETRAINED_LR with
    encoder_lr: float | None = None
    # pretrained weights, 1 from a random start
    layer_decay: float = 0.9  # an encoder block's learning rate over that of the block above it
    warmup_iterations: int | None = None  # linear from 0; None: see `warmup`
    warmup_epochs: float | None = None  # the same in epochs, as older plans have it
    # epochs from one part of the encoder to the next, where the trainer unfreezes
    unfreeze_every: float | None = None
    # gradually; None: a twentieth of the epochs, so that all of it learns after a quarter
    lora_rank: int = 8  # of the encoder's updates, where the trainer learns by LoRA
    lora_alpha: float = 16.0  # over the rank: the scale of those updates
    schedule: str = "poly"  # poly: nnU-Net's (1 - t)^0.9; cosine
    weight_decay: float = 0.05  # not on norms, biases and position biases (Liu et al. 2021)
    clip: float = 1.0  # norm of the gradient, as nnU-Net's own transformer trainers
    # of the encoder's last block, rising from 0; None: see `stochastic_depth`
    drop_path: float | None = None
    # what the average of the weights keeps in a step; 0: no average; None: see `average`
    ema: float | None = None

    def __post_init__(self) -> None:
        wrong = [
            name
            for name in ("epochs", "iterations", "val_iterations", "lora_rank")
            if getattr(self, name) < 1
        ]
        wrong += [
            name
            for name in ("lr", "head_lr", "layer_decay", "clip", "lora_alpha")
            if not getattr(self, name) > 0
        ]
        optional = (
            "warmup_iterations",
            "warmup_epochs",
            "unfreeze_every",
            "encoder_lr",
            "drop_path",
            "ema",
        )
        wrong += [name for name in ("weight_decay", *optional) if (getattr(self, name) or 0) < 0]
        wrong += [
            name for name in ("foreground", "layer_decay") if not 0 <= getattr(self, name) <= 1
        ]
        wrong += [name for name in ("drop_path", "ema") if (getattr(self, name) or 0) >= 1]
        if self.schedule not in ("poly", "cosine"):
            wrong.append("schedule")
        if None not in (self.warmup_iterations, self.warmup_epochs):
            wrong.append("warmup_iterations and warmup_epochs, of which one is enough")
        if wrong:
            raise ValueError(
                "a fine-tuning recipe needs positive numbers, layer_decay and foreground at most "
                "1, drop_path and ema below 1, and schedule poly or cosine; wrong: "
                f"{', '.join(wrong)}; got {asdict(self)}"
            )

    @classmethod
    def of(cls, plans: dict) -> Recipe:
        """From the plans; an unknown key raises ValueError that lists the known ones."""
        values = plans.get(RECIPE, {})
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"unknown key(s) in the plans' {RECIPE}: {', '.join(unknown)}; known: "
                f"{', '.join(known)}"
            )
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def total(self) -> int:
        """Iterations of the training."""
        return self.epochs * self.iterations

    @property
    def warmup(self) -> int:
        """Iterations: by default a twentieth of all, at least 50 and at most 2500, but never more
        than a quarter.

        Adam's first steps move every weight by the learning rate, whatever the gradient, and so
        would disturb what was learnt before. What that takes is counted in steps, not in epochs of
        any length.
        """
        if self.warmup_iterations is not None:
            return self.warmup_iterations
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * self.iterations)
        return ceil(min(2500, max(50, self.total / 20), self.total / 4))

    @property
    def stochastic_depth(self) -> float:
        """Of the encoder, in this training: a matter of its length, and not of what the pretraining
        had.
        """
        if self.drop_path is not None:
            return self.drop_path
        return 0.1 if self.total >= LONG else 0.0

    @property
    def average(self) -> float:
        """What the average of the weights keeps in a step: by default it is over the last twentieth
        of the training, at least 100 iterations and at most 1000."""
        return 1 - 1 / min(1000, max(100, self.total / 20)) if self.ema is None else self.ema

    def encoder_scale(self, pretrained: bool) -> float:
        """The learning rate of the encoder's last block over that of the decoder."""
        if self.encoder_lr is not None:
            return self.encoder_lr
        return PRETRAINED_LR if pretrained else 1.0

    @property
    def unfreeze(self) -> float:
        """Epochs."""
        return self.epochs / 20 if self.unfreeze_every is None else self.unfreeze_every


def architecture(
    plans: dict, resolved: dict, encoder: SwinConfig, decoder: str | dict, hu: HUPolicy | None
) -> dict:
    """The entry `architecture` of a configuration: the encoder in its dimensions and strides, its
    intensities mapped.

    plans:    with the entry `pretrain_info`, where there is a checkpoint.
    resolved: the configuration, its inheritance resolved
    (`PlansManager.get_configuration(...).configuration`).
    hu:       what the encoder was pretrained on; None: nnU-Net's own intensities.
    """
    # that is a matter of the recipe
    encoder = replace(encoder_for(plans, resolved, encoder), drop_path=0.0)
    properties = plans.get("foreground_intensity_properties_per_channel", {})
    intensity = intensity_map(resolved["normalization_schemes"], properties, hu)
    decoder = full_options(decoder)
    # then its skip sees what it saw there
    pretrained = plans.get(INFO, {}).get("decoder") == decoder
    arguments = {
        "encoder": encoder.to_dict(),
        "decoder": decoder,
        "intensity": intensity,
        "image_skip": "mapped" if pretrained else "raw",
    }
    axes = axes_of(plans, encoder.spatial_dims)
    if axes != sorted(axes):
        arguments["axes"] = axes
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }


def axes_of(plans: dict, dims: int) -> list[int]:
    """Which of the axes as read each axis of a configuration is; a 2d one keeps its two as they
    are.
    """
    return list(plans.get("transpose_forward", range(3))) if dims == 3 else list(range(dims))


def encoder_for(plans: dict, resolved: dict, encoder: SwinConfig) -> SwinConfig:
    """`encoder` in the configuration's dimensions; an axis of wide spacing is not halved at once
    (`steps_for`).
    """
    patch, spacing = resolved["patch_size"], resolved["spacing"]
    dims = len(patch)
    if encoder.steps and encoder.spatial_dims == dims:
        return encoder  # it was pretrained so
    pretrained = plans.get(INFO, {}).get("spacing")
    axes = axes_of(plans, dims)
    read = [axes.index(axis) for axis in range(dims)]  # the encoder sees the axes as read
    steps = steps_for(
        tuple(spacing[i] for i in read),
        tuple(patch[i] for i in read),
        pretrained and pretrained[-dims:],
    )
    # Weights of other dimensions cannot be loaded, so nothing is to be computed as they would want
    # it.
    return replace(
        encoder, spatial_dims=dims, steps=steps, **({} if encoder.spatial_dims == dims else OWN)
    )


def steps_of(resolved: dict) -> tuple[Shape, ...]:
    """The encoder's steps in a (resolved) configuration of ours, in that configuration's axes; ()
    if 2 everywhere.
    """
    arguments = resolved["architecture"]["arch_kwargs"]
    steps = arguments["encoder"].get("steps", ())
    return permute_axes(steps, arguments.get("axes") or range(len(resolved["patch_size"])))


def permute_axes(steps: tuple[Shape, ...], axes: Iterable[int]) -> tuple[Shape, ...]:
    """`steps` in the order of `axes`."""
    return tuple(tuple(step[axis] for axis in axes) for step in steps)


def is_ours(configuration: dict) -> bool:
    """Whether a (resolved) configuration of the plans names our network."""
    return configuration.get("architecture", {}).get("network_class_name") == NETWORK_CLASS


def intensity_map(schemes: list[str], properties: dict, hu: HUPolicy | None) -> dict | None:
    """`SwinUNETR`'s `intensity`: nnU-Net's normalised CT back to HU, and on to what the pretraining
    saw.

    schemes:    a configuration's `normalization_schemes`, one a channel.
    properties: the plans' `foreground_intensity_properties_per_channel`.
    hu:         the pretraining's policy; None where there was none.
    Channels of another scheme than CTNormalization pass as they are. None: nothing to do.
    """
    if hu is None or "CTNormalization" not in schemes:
        return None
    rows = [
        _from_ct(properties[str(c)], hu) if s == "CTNormalization" else _as_it_is()
        for c, s in enumerate(schemes)
    ]
    mapped = {name: [row[name] for row in rows] for name in rows[0]}
    if not hu.interior:
        return mapped
    return mapped | {
        "bends": [[*map(list, hu.bends)] if s == "CTNormalization" else None for s in schemes]
    }


def describe_map(intensity: dict | None, info: dict) -> list[str]:
    """Lines for the log; `info`: the plans' `pretrain_info`, of the checkpoint mapped to."""
    if not intensity:
        return ["Intensities: as nnU-Net gives them"]
    numbers = {name: values for name, values in intensity.items() if name != "bends"}
    lines = [f"Intensities: {numbers}"]
    if intensity.get("bends") and info.get("hu"):
        lines.append(f"  and on as in the pretraining: {HUPolicy.from_dict(info['hu']).describe()}")
    return lines


def _from_ct(properties: dict, hu: HUPolicy) -> dict:
    std = max(properties["std"], 1e-8)  # as CTNormalization divides
    return {
        "scale": std / hu.std,
        "shift": (properties["mean"] - hu.mean) / hu.std,
        "low": (hu.low - hu.mean) / hu.std,
        "high": (hu.high - hu.mean) / hu.std,
    }


def _as_it_is() -> dict:
    return {"scale": 1.0, "shift": 0.0, "low": None, "high": None}
