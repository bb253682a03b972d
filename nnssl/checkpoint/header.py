"""Validate a checkpoint before it is used: types, sizes, tensors that fit the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from itertools import chain
from typing import TypeGuard

import torch
from torch import Tensor

from nnssl.checkpoint.decoder_header import DECODER, check_decoder
from nnssl.checkpoint.header_values import (
    is_integer,
    is_number,
    is_text,
    require_json,
    require_valid,
    unlike,
)
from nnssl.checkpoint.plain import printable, why_inflated, why_no_weights
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.hu import HUPolicy

FORMAT_VERSION = 1
KEYS = {"format_version", "header", "network_weights", "nnssl_adaptation_plan", "citations"}
HEADER = {"method", "plan", "crop", "encoder"}  # what using the weights needs; the rest informs
INFORMS = {  # where it is there
    "preset": str,
    "created": str,
    "step": int,
    "versions": dict,
    "run": dict,
    "method_config": dict,
    "metrics": dict,
    "probe": dict,
    "foreign": dict,
    "start": dict,
    "decoder": dict,
    "parcels": str,
    "supervised": bool,
}
PREFIX = "encoder."
STEM = f"{PREFIX}patch_embed.proj.weight"
TABLE = f"{PREFIX}layers1.0.blocks.0.attn.relative_position_bias_table"
HIDDEN = f"{PREFIX}layers1.0.blocks.0.mlp.linear1.weight"
MASK = f"{PREFIX}mask_token"  # pretraining only
LINEAR = {"low", "high", "mean", "sd"}  # of a HU map
LARGEST_CROP, WIDEST_SPACING = 10_000, 1000.0  # voxels, mm: beyond any scan
MOST_KNOTS = 64  # of a HU map


def problem(content: object) -> str | None:
    """Why `content` is not that of a checkpoint; None where it is."""
    if not _has_keys(content, KEYS):
        return _foreign(content)
    return (
        _unwritable(content)
        or _unreadable(content["format_version"])
        or _misnamed(content["header"], content["network_weights"])
        or _misfit(content)
        or _unusable(content["network_weights"])
    )


def _has_keys(value: object, keys: set[str]) -> TypeGuard[dict]:
    return isinstance(value, dict) and value.keys() >= keys


def _foreign(content: object) -> str:
    is_dict = isinstance(content, dict)
    found = sorted(map(str, content))[:10] if is_dict else type(content).__name__
    return f"is not a checkpoint of nnssl_pretrain: it holds {found}, expected {sorted(KEYS)}"


def _unwritable(content: dict) -> str | None:
    try:
        for name in ("format_version", "header", "citations"):
            require_json(name, content[name])
    except ValueError as error:
        return f"has an invalid header: {error}"
    return None


def _unreadable(version: object) -> str | None:
    if is_integer(version) and version == FORMAT_VERSION:
        return None
    return (
        f"has format version {printable(repr(version))}, this installation reads "
        f"{FORMAT_VERSION}; install the version that wrote it, or a newer one"
    )


def _misnamed(header: object, weights: object) -> str | None:
    if not _has_keys(header, HEADER):
        return f"has a header that lacks some of {sorted(HEADER)}"
    if not _are_tensors(weights):
        return "holds network_weights that are not tensors by name"
    allowed = (PREFIX, DECODER) if "decoder" in header else (PREFIX,)
    if stray := [str(name) for name in weights if not str(name).startswith(allowed)]:
        return f"holds weights that are not the encoder's: {stray[:5]}"
    return None


def _are_tensors(weights: object) -> TypeGuard[dict[object, Tensor]]:
    return isinstance(weights, dict) and all(isinstance(w, Tensor) for w in weights.values())


def _misfit(content: dict) -> str | None:
    header = content["header"]
    try:
        _check_header(header, content["citations"])
        config = SwinConfig.from_dict(header["encoder"])
        _check_fit(config, content["network_weights"])
        if "decoder" in header:
            check_decoder(header["decoder"], config, content["network_weights"])
    except (ValueError, TypeError) as error:
        return f"has an invalid header: {printable(error)}"
    except OverflowError as error:  # of a product, such as that of a width and a ratio
        return f"has an invalid header: a number in it is too large ({error})"
    return None


def _unusable(weights: Mapping[str, Tensor]) -> str | None:
    if why := why_inflated(weights.values()):
        return f"holds tensors that {why}; nnssl never writes that"
    for name, tensor in weights.items():
        if why := why_no_weights(tensor):
            return f"holds {name}, which {why}; nnssl never writes that"
    return None


def _check_header(header: Mapping, citations: object) -> None:
    """Raises ValueError or TypeError."""
    _check_text(header, citations)
    _check_kinds(header)
    _check_encoder(header["encoder"])
    dims = header["encoder"].get("spatial_dims", SwinConfig.spatial_dims)
    _check_crop(header["crop"], dims)
    _check_plan(header["plan"], dims)


def _check_text(header: Mapping, citations: object) -> None:
    require_valid(is_text(header["method"]), "method must be a non-empty string", header["method"])
    preset = header.get("preset", "unknown")
    require_valid(is_text(preset), "preset must be a short, printable string", preset)
    are_text = isinstance(citations, list) and all(isinstance(one, str) for one in citations)
    require_valid(are_text, "citations must be a list of strings", citations)


def _check_kinds(header: Mapping) -> None:
    for name, kind in INFORMS.items():
        value = header.get(name, kind())
        require_valid(isinstance(value, kind), f"{name} must be a {kind.__name__}", value)


def _check_crop(crop: object, dims: int) -> None:
    fits = isinstance(crop, list) and len(crop) == dims and all(map(_is_edge, crop))
    require_valid(fits, f"crop must be {dims} numbers of voxels", crop)


def _is_edge(voxels: object) -> bool:
    return is_integer(voxels) and 0 < voxels <= LARGEST_CROP


def _check_plan(plan: object, dims: int) -> None:
    if not _has_keys(plan, {"hu", "spacing"}):
        raise unlike("plan must have hu and spacing", plan)
    if plan["spacing"] is not None:
        _check_plan_spacing(plan["spacing"], dims)
    if plan["hu"] is not None:
        _check_hu(plan["hu"])


def _check_plan_spacing(spacing: object, dims: int) -> None:
    fits = isinstance(spacing, list) and dims <= len(spacing) <= 3 and all(map(_is_step, spacing))
    require_valid(fits, "spacing must be numbers in mm", spacing)


def _is_step(mm: object) -> bool:
    return is_number(mm) and 0 < mm <= WIDEST_SPACING


def _check_hu(hu: object) -> None:
    """A linear map has four numbers; one with knots a list of pairs as well."""
    if not _has_keys(hu, LINEAR) or hu.keys() - LINEAR - {"interior"}:
        raise unlike(f"hu must have {sorted(LINEAR)}", hu)
    knots = hu.get("interior", [])
    _check_knots(knots)
    numbers = [*(hu[name] for name in LINEAR), *chain.from_iterable(knots)]
    require_valid(all(map(is_number, numbers)), "hu must have numbers", hu)
    HUPolicy.from_dict(hu)


def _check_knots(knots: object) -> None:
    fits = isinstance(knots, list) and len(knots) <= MOST_KNOTS and all(map(_is_pair, knots))
    require_valid(fits, f"hu.interior must have at most {MOST_KNOTS} pairs", knots)


def _is_pair(knot: object) -> bool:
    return isinstance(knot, list) and len(knot) == 2


def _are_fields(encoder: object) -> TypeGuard[dict[str, object]]:
    return isinstance(encoder, dict) and all(isinstance(name, str) for name in encoder)


def _check_encoder(encoder: object) -> None:
    """Raise where a value has not the type that `SwinConfig` has; the rest it checks itself."""
    if not _are_fields(encoder):
        raise unlike("encoder must be a mapping of fields", encoder)
    for field in fields(SwinConfig):
        value = encoder.get(field.name, field.default)
        rule = f"encoder.{field.name} must have the type of {field.default!r}"
        require_valid(_is_like(value, field.default), rule, value)


def _is_like(value: object, default: object) -> bool:
    """Whether a value has the type of a default; a tuple's is whole numbers, in rows or not."""
    if isinstance(default, tuple):
        return all(map(is_integer, _flat(value)))
    if isinstance(default, float):
        return is_number(value)
    return type(value) is type(default)


def _flat(value: object) -> list:
    """The numbers of a list, or of a list of lists; [None] of anything else."""
    rows = value if isinstance(value, (list, tuple)) else [None]
    return [n for row in rows for n in (row if isinstance(row, (list, tuple)) else [row])]


def _check_fit(config: SwinConfig, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError where `weights` are not an encoder's of `config`; allocates none.

    Width, window and depth come first: an encoder on "meta" takes no memory for its tensors, but
    its blocks are Python objects.
    """
    _check_telling_shapes(config, weights)
    require_valid(
        sum(config.depths) <= len(weights), "every block must have tensors", config.depths
    )
    _check_all_shapes(config, weights)


def _check_all_shapes(config: SwinConfig, weights: Mapping[str, Tensor]) -> None:
    other = sorted(set(_expected_shapes(config).items()) ^ _encoder_shapes(weights))
    rule = f"the tensors must be those of the encoder {config.to_dict()}"
    require_valid(not other, rule, [name for name, _ in other[:3]])


def _check_telling_shapes(config: SwinConfig, weights: Mapping[str, Tensor]) -> None:
    for name, shape in _telling_shapes(config).items():
        got = tuple(weights[name].shape) if name in weights else "none"
        require_valid(got == shape, f"the encoder must have {name} {shape}", got)


def _encoder_shapes(weights: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (name, tuple(tensor.shape))
        for name, tensor in weights.items()
        if name != MASK and not name.startswith(DECODER)
    }


def _telling_shapes(config: SwinConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that tell width, window and hidden width."""
    table = (2 * config.window - 1) ** config.spatial_dims
    hidden = int(config.embed_dim * config.mlp_ratio)
    return {
        STEM: (config.embed_dim, config.in_channels, *config.step(0)),
        TABLE: (table, config.heads[0]),
        HIDDEN: (hidden, config.embed_dim),
    }


@lru_cache(maxsize=4)
def _expected_shapes(config: SwinConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {PREFIX + name: tuple(p.shape) for name, p in Swin(config).named_parameters()}
