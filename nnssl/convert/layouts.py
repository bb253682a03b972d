"""Layouts of third-party files, as data: where the encoder's tensors are, and what they are called.

A layout's rules rename tensors to our names (`nnssl.encoder.swin`). {a} in them counts stages from
0, {b} from 1, {c} is 2a+1 and {d} is 2b. What no rule touches keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

STEM = "patch_embed.proj.weight"

PERCEPTRON = ((r"\.mlp\.fc1\.", ".mlp.linear1."), (r"\.mlp\.fc2\.", ".mlp.linear2."))


@dataclass(frozen=True)
class Layout:
    """Recognised by its stem with all of `has` and none of `lacks` beside it.

    rules: (regular expression, what stands in its place in our names), in the order in which they
    are applied.
    """

    name: str
    has: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    lacks: tuple[str, ...] = ()
    stem: str = STEM


BLOCK = "layers.0.blocks.0.attn.qkv.weight"
LAYOUTS = (
    Layout("monai", ("layers1.0.blocks.0.attn.qkv.weight",), PERCEPTRON),
    Layout(
        "monai_nested",
        ("layers1.0.0.blocks.0.attn.qkv.weight",),
        ((r"^layers{b}\.0\.0\.", "layers{b}.0."), *PERCEPTRON),
    ),
    Layout(
        "smit",
        (BLOCK, "layers.0.downsample.norm.weight", "layers.3.downsample.norm.weight"),
        ((r"^layers\.{a}\.", "layers{b}.0."), *PERCEPTRON, (r"^norm{a}\.", "out_norms.{a}.")),
    ),
    Layout(
        "swin",  # Liu et al.'s own: a stage ends with its merge
        (BLOCK, "layers.0.downsample.norm.weight"),
        ((r"^layers\.{a}\.", "layers{b}.0."), *PERCEPTRON),
        lacks=("layers.3.downsample.norm.weight",),
    ),
    Layout(
        "timm",  # a stage begins with the merge of the one before
        (BLOCK, "layers.3.downsample.norm.weight"),
        (
            (r"^layers\.{b}\.downsample\.", "layers{b}.0.downsample."),
            (r"^layers\.{a}\.", "layers{b}.0."),
            *PERCEPTRON,
        ),
        lacks=("layers.0.downsample.norm.weight",),
    ),
    Layout(
        "torchvision",
        ("features.1.0.attn.qkv.weight", "features.2.reduction.weight"),
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.{d}\.", "layers{b}.0.downsample."),
            (r"^features\.{c}\.", "layers{b}.0.blocks."),
            (r"\.mlp\.0\.", ".mlp.linear1."),
            (r"\.mlp\.3\.", ".mlp.linear2."),
        ),
        stem="features.0.0.weight",
    ),
)

INDEX = "relative_position_index"
LEFT_OUT = (  # what else lies beside an encoder's tensors, in our names
    (rf".*\.{INDEX}", "computed by our encoder, and equal"),
    (r".*\.attn_mask", "computed by our encoder"),
    (r"mask_token", "pretraining only: nothing is hidden when fine-tuning"),
    (r"norm\.(weight|bias)", "norm before the head of pretraining"),
    (
        r"(head|rotation_\w+|contrastive_\w+|conv|decoder\w*|proj_head|projection\w*)\..*",
        "head of pretraining",
    ),
)

SCALE = "logit_scale"
OTHERS = {  # of what else a file may be, by a part of its names
    SCALE: "a Swin V2 (cosine attention), which our encoder does not compute",
    "pos_embed": "a plain ViT, or an encoder with absolute positions",
    "encoder.stages.": "a convolutional encoder such as nnU-Net's",
    "embeddings.patch_embeddings.": (
        "a Swin of Hugging Face's transformers; convert timm's or torchvision's file"
    ),
    "down_path.": "a convolutional U-Net",
    "layer1.0.conv1.": "a ResNet",
}


class LayoutMatch(NamedTuple):
    layout: Layout
    prefix: str  # of the encoder's names in the file

    def our_name(self, name: str) -> str | None:
        """The name in our encoder of a tensor of the file; None outside of the encoder."""
        if not name.startswith(self.prefix):
            return None
        return our_name(self.layout, name.removeprefix(self.prefix))


def find_encoders(names: Iterable[str]) -> list[LayoutMatch]:
    """Every encoder of a known layout among `names`."""
    names = set(names)
    return [
        LayoutMatch(layout, name.removesuffix(layout.stem))
        for layout in LAYOUTS
        for name in sorted(names)
        if name == layout.stem or name.endswith("." + layout.stem)
        if _matches_layout(layout, name.removesuffix(layout.stem), names)
    ]


def _matches_layout(layout: Layout, prefix: str, names: set[str]) -> bool:
    return all(prefix + name in names for name in layout.has) and not any(
        prefix + name in names for name in layout.lacks
    )


def our_name(layout: Layout, name: str) -> str:
    """The name in our encoder of a tensor of `layout`, without its prefix."""
    for pattern, ours in layout.rules:
        for a in range(4 if "{" in pattern else 1):
            numbers = {"a": a, "b": a + 1, "c": 2 * a + 1, "d": 2 * a + 2}
            name = re.sub(pattern.format(**numbers), ours.format(**numbers), name, count=1)
    return name


def is_v2(match: LayoutMatch, names: Iterable[str]) -> bool:
    """Whether a found encoder is a Swin V2, which has the names of a Swin and some more."""
    ours = (match.our_name(name) or "" for name in names)
    return any(name.startswith("layers") and name.endswith(f".attn.{SCALE}") for name in ours)


def reason_to_leave_out(name: str) -> str | None:
    """Why a tensor of this (our) name is not needed; None where it is."""
    return next((reason for pattern, reason in LEFT_OUT if re.fullmatch(pattern, name)), None)


def guess(names: Iterable[str]) -> str:
    """What a file may be in which no layout was found."""
    text = "\n".join(names)
    return next(
        (f"it looks like {what}" for part, what in OTHERS.items() if part in text),
        "nothing in it is known",
    )
