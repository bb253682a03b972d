"""The entries of a plans file for the network and its training: `architecture`, `pretrain_info` and
`nnssl_recipe` (`nnssl.recipe`).

A configuration's `architecture` is nnU-Net's own entry, with our class: {"network_class_name",
"arch_kwargs", "_kw_requires_import"}. `pretrain_info` is upstream's entry for a pretrained
checkpoint, with its hash. `nnssl_recipe` holds the numbers of the training; one that is left out
takes its default. `nnssl_plan` tells how the plans were made, and nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeGuard

from nnssl.encoder.config import NATIVE, SwinConfig
from nnssl.finetune.strides import steps_for
from nnssl.hu import HUPolicy
from nnssl.network.decoders import full_options
from nnssl.types import NETWORK_CLASS, Shape

INFO, PLANNED = "pretrain_info", "nnssl_plan"
INTENSITIES = "foreground_intensity_properties_per_channel"
EARLY_INTENSITIES = "foreground_intensity_properties_by_modality"  # as early nnU-Net v2 called them
BY_INTENSITIES = "CTNormalization"  # the scheme that normalises by the dataset's intensities
PRETRAINED_SKIP = "mapped"  # a pretrained decoder gets the same input as in the pretraining
DECODER = "swinunetr"  # where none is named and none was pretrained


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
    adapted = replace(encoder_for(plans, resolved, encoder), drop_path=0.0)
    decoder = full_options(decoder)
    pretrained = plans.get(INFO, {}).get("decoder") == decoder and _same_strides(adapted, encoder)
    arguments = {
        "encoder": adapted.to_dict(),
        "decoder": decoder,
        "intensity": _intensity(plans, resolved, hu),
        "image_skip": PRETRAINED_SKIP if pretrained else "raw",
        **_axes_argument(axes_of(plans, adapted.spatial_dims)),
    }
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }


def _axes_argument(axes: list[int]) -> dict[str, list[int]]:
    """Only if the axis order of the plans differs from that of the files."""
    return {} if axes == sorted(axes) else {"axes": axes}


def _intensity(plans: dict, resolved: dict, hu: HUPolicy | None) -> dict | None:
    return intensity_map(resolved["normalization_schemes"], intensities_of(plans), hu)


def _same_strides(one: SwinConfig, other: SwinConfig) -> bool:
    """Whether the weights of a decoder on one encoder can be loaded into that on the other."""
    return (one.spatial_dims, one.steps) == (other.spatial_dims, other.steps)


def has_pretrained_decoder(configuration: dict) -> bool:
    """Whether the decoder of a configuration of ours starts from weights of the pretraining."""
    return configuration["architecture"]["arch_kwargs"].get("image_skip") == PRETRAINED_SKIP


def as_read(values: Iterable, axes: Iterable[int]) -> list:
    """`values` by axis of the plans, in the order in which files are read."""
    return [value for _, value in sorted(zip(axes, values, strict=True))]


def axes_of(plans: dict, dims: int) -> list[int]:
    """Which of the axes as read each axis of a configuration is; a 2d one keeps its two as they
    are.
    """
    return list(plans.get("transpose_forward", range(3))) if dims == 3 else list(range(dims))


def encoder_for(plans: dict, resolved: dict, encoder: SwinConfig) -> SwinConfig:
    """`encoder` in the configuration's dimensions; an axis of wide spacing is not halved at once
    (`steps_for`).
    """
    dims = len(resolved["patch_size"])
    same_dims = encoder.spatial_dims == dims
    if encoder.steps and same_dims:
        return encoder  # it was pretrained so
    steps = _configuration_steps(plans, resolved, dims)
    # Weights of other dimensions cannot be loaded, so nothing is to be computed as they would want
    # it.
    return replace(encoder, spatial_dims=dims, steps=steps, **({} if same_dims else NATIVE))


def _configuration_steps(plans: dict, resolved: dict, dims: int) -> tuple[Shape, ...]:
    """`steps_for` the configuration, by the axes as read, which are those that the encoder sees."""
    axes = axes_of(plans, dims)
    spacing, patch = (tuple(as_read(resolved[name], axes)) for name in ("spacing", "patch_size"))
    pretrained = plans.get(INFO, {}).get("spacing")
    return steps_for(spacing, patch, pretrained and pretrained[-dims:])


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


def intensities_of(plans: Mapping) -> dict:
    """The intensities of the labelled voxels by channel, {"0": {"mean": ..., "std": ...}}, under
    either name that nnU-Net reads; empty where the plans hold none.
    """
    return plans.get(INTENSITIES) or plans.get(EARLY_INTENSITIES, {})


def are_plans(content: object) -> TypeGuard[dict]:
    """Whether the content of a JSON file is that of plans; a dataset's folder holds others too."""
    entries = content.get("configurations") if isinstance(content, dict) else None
    return isinstance(entries, dict) and all(isinstance(one, dict) for one in entries.values())


def is_ours(configuration: dict) -> bool:
    """Whether a (resolved) configuration of the plans names our network."""
    entry = configuration.get("architecture")
    return isinstance(entry, dict) and entry.get("network_class_name") == NETWORK_CLASS


def is_ct(plans: dict) -> bool:
    """Whether any channel is normalised as CT."""
    entries = plans.get("configurations", {}).values()
    return any(BY_INTENSITIES in entry.get("normalization_schemes", ()) for entry in entries)


def intensity_map(schemes: list[str], properties: dict, hu: HUPolicy | None) -> dict | None:
    """`SwinUNETR`'s `intensity`: nnU-Net's normalised CT back to HU, and on to what the pretraining
    saw.

    schemes:    a configuration's `normalization_schemes`, one per channel.
    properties: `intensities_of` the plans.
    hu:         the pretraining's policy; None where there was none.
    Channels with a scheme other than CTNormalization pass unchanged. None: nothing to do.
    """
    is_ct_channel = [scheme == BY_INTENSITIES for scheme in schemes]
    if hu is None or not any(is_ct_channel):
        return None
    rows = [
        _from_ct(properties[str(channel)], hu) if ct else _as_it_is()
        for channel, ct in enumerate(is_ct_channel)
    ]
    mapped = {name: [row[name] for row in rows] for name in rows[0]}
    if hu.interior:
        bends = [list(bend) for bend in hu.bends]
        mapped["bends"] = [bends if ct else None for ct in is_ct_channel]
    return mapped


def describe_map(intensity: dict | None, info: dict) -> list[str]:
    """Lines for the log; `info`: the plans' `pretrain_info`, of the checkpoint mapped to."""
    if not intensity:
        return ["Intensities: as normalised by nnU-Net"]
    numbers = {name: values for name, values in intensity.items() if name != "bends"}
    lines = [f"Intensities: {numbers}"]
    if intensity.get("bends") and info.get("hu"):
        lines.append(f"  then as in the pretraining: {HUPolicy.from_dict(info['hu']).describe()}")
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
