"""The header of a decoder that was pretrained too: it must be that of the file's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from nnssl.checkpoint.header_values import is_integer, is_text, require_valid
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.network.decoders import DECODERS, make_decoder

DECODER = "decoder."  # begins the names of its tensors
HEADS = "heads.seg_layers."  # of a decoder; they belong to one task
WIDEST = 65_536  # channels; with more, even finding the groups of a norm takes long

Shapes = frozenset[tuple[str, tuple[int, ...]]]  # of tensors, with their names


def check_decoder(decoder: Mapping, config: SwinConfig, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError; allocates nothing. What this version does not know is built nowhere."""
    require_valid(is_text(decoder.get("name")), "decoder must have a name", decoder)
    if decoder["name"] not in DECODERS:
        return
    rule = f"options of the decoder must be text, or lists of widths up to {WIDEST}"
    require_valid(all(map(_is_option, decoder.values())), rule, decoder)
    found = {
        (name.removeprefix(DECODER), tuple(tensor.shape))
        for name, tensor in weights.items()
        if name.startswith(DECODER)
    }
    other = sorted(found ^ _expected(json.dumps(decoder), config))
    rule = f"the decoder's tensors must be those of {decoder}"
    require_valid(not other, rule, [name for name, _ in other[:3]])


def _is_option(value: object) -> bool:
    widths = isinstance(value, (list, tuple)) and all(map(_is_width, value))
    return value is None or is_text(value) or widths


def _is_width(value: object) -> bool:
    return is_integer(value) and 0 < value <= WIDEST


@lru_cache(maxsize=4)
def _expected(decoder: str, config: SwinConfig) -> Shapes:
    """decoder: name and options, as JSON."""
    with torch.device("meta"):
        built = make_decoder(json.loads(decoder), Swin(config), 1, deep_supervision=True)
    return frozenset(
        (name, tuple(tensor.shape)) for name, tensor in without_heads(built.state_dict()).items()
    )


def without_heads(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's tensors by name, those of its heads left out."""
    return {name: tensor for name, tensor in decoder.items() if not name.startswith(HEADS)}
