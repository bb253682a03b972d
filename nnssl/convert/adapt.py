"""Adapt third-party weights, under our names, so that our encoder computes the same function.

One pure function a difference. Each takes and gives {name: tensor}, leaves what it does not concern
as it is, and is an equality that a test states.
"""

from __future__ import annotations

import re
from itertools import product

import torch
from torch import Tensor

from nnssl.convert.layouts import STEM
from nnssl.encoder.windows import corners
from nnssl.types import Shape

Weights = dict[str, Tensor]

TABLE, NORM, REDUCTION = (
    "relative_position_bias_table",
    r".*downsample\.norm\..*",
    ".*downsample.reduction.weight",
)
FIRST_BLOCKS = [f"layers{stage}.0.blocks.0." for stage in range(1, 5)]
# the corners of a cell that merging "all" joins, in their order, with the first axis first
CHUNKS = {
    "monai": corners((2, 2, 2)),
    "v2": list(product((0, 1), repeat=3)),  # MONAI's PatchMergingV2
    "smit": [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 1),
    ],
}


def dims_of(weights: Weights) -> int:
    return weights[STEM].ndim - 2


def zyx_from_xyz(weights: Weights) -> Weights:
    """For arrays (z, y, x) what the weights were for (x, y, z): kernels and bias tables, not yet
    the merges.
    """
    dims = dims_of(weights)
    return {name: _reversed_axes(name, tensor, dims) for name, tensor in weights.items()}


def _reversed_axes(name: str, tensor: Tensor, dims: int) -> Tensor:
    """A kernel or a bias table with its axes in the other order; others as they are."""
    if tensor.ndim == dims + 2:
        return tensor.permute(0, 1, *reversed(range(2, dims + 2))).contiguous()
    return _reversed_table(tensor, dims) if name.endswith(TABLE) else tensor


def _reversed_table(table: Tensor, dims: int) -> Tensor:
    side = round(len(table) ** (1 / dims))
    grid = table.view(*[side] * dims, -1)
    return grid.permute(*reversed(range(dims)), dims).flatten(0, dims - 1)


def reorder_merge(weights: Weights, theirs: list[Shape], ours: list[Shape]) -> Weights:
    """For merges that join the corners `ours` what the weights were for `theirs`, both in our
    axes.
    """
    if theirs == ours:
        return weights
    order = [theirs.index(corner) for corner in ours]
    return {
        name: _pick_corners(tensor, order, len(order)) if _is_merge(name) else tensor
        for name, tensor in weights.items()
    }


def _is_merge(name: str) -> bool:
    return re.fullmatch(NORM, name) is not None or re.fullmatch(REDUCTION, name) is not None


def _pick_corners(tensor: Tensor, chosen: list[int], corners: int) -> Tensor:
    """The `chosen` corners, in their order, of a last axis [corners * channels]."""
    return tensor.unflatten(-1, (corners, -1))[..., chosen, :].flatten(-2)


def grey(weights: Weights) -> Weights:
    """For one channel what the weights were for equal red, green and blue: three times the average
    kernel.
    """
    return weights | {STEM: weights[STEM].sum(1, keepdim=True)}


def halved_patch(weights: Weights) -> Weights:
    """For 2D patches of 2 what the weights were for patches of 4 on the image with pixels doubled
    along both axes.
    """
    kernel = weights[STEM]
    return weights | {STEM: kernel.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).sum((-1, -3))}


def inflated(weights: Weights) -> Weights:
    """For 3D volumes that are constant along z what the weights were for their slices (Carreira,
    Zisserman 2017).

    Kernels and merges are repeated along z and halved, norms of merges and bias tables repeated.
    """
    return {name: _repeated(name, tensor) for name, tensor in weights.items()}


def _repeated(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a 2D encoder along z."""
    if name == STEM:
        return torch.stack([tensor, tensor], 2) / 2
    if name.endswith(TABLE):
        return tensor.repeat(round(len(tensor) ** 0.5), 1)
    if re.fullmatch(NORM, name):
        return _repeated_corners(tensor)
    return _repeated_corners(tensor) / 2 if re.fullmatch(REDUCTION, name) else tensor


def _repeated_corners(tensor: Tensor) -> Tensor:
    """Of a last axis [4 * channels] each corner of a square twice, in the order of a cube's."""
    square = corners((2, 2))
    which = [square.index(corner[1:]) for corner in corners((2, 2, 2))]
    return _pick_corners(tensor, which, len(square))


def without_idle_norms(weights: Weights) -> Weights:
    """Without learnt norms at the taps that are the identity: they were not trained, and ours have
    no parameters.
    """
    norms = {name: tensor for name, tensor in weights.items() if name.startswith("out_norms.")}
    if all(_is_untrained(name, tensor) for name, tensor in norms.items()):
        return {name: tensor for name, tensor in weights.items() if name not in norms}
    return weights


def _is_untrained(name: str, tensor: Tensor) -> bool:
    """Whether all weights of a norm are 1, or all its biases 0."""
    return bool((tensor == name.endswith("weight")).all())


def patch(weights: Weights) -> int:
    """The edge of a patch. Raises ValueError for one that is not of 2 voxels per axis (in 2D also
    4).
    """
    kernel = tuple(weights[STEM].shape[2:])
    if kernel not in {(2, 2, 2), (2, 2), (4, 4)}:
        raise ValueError(f"patches are {kernel}; supported are 2 voxels per axis and, in 2D, 4 x 4")
    return kernel[0]


def window_of(table: Tensor, dims: int) -> int:
    """The edge of the window that a bias table [(2*window-1)^dims heads] is for. Raises ValueError
    when none fits.
    """
    side = round(len(table) ** (1 / dims))
    if side**dims != len(table) or side % 2 == 0:
        raise ValueError(
            f"a bias table of {len(table)} rows is not that of a window of equal edges in {dims}D"
        )
    return (side + 1) // 2


def facts(weights: Weights) -> dict:
    """The fields of `SwinConfig` that tensors tell; those of the other blocks have to agree when
    they are loaded.
    """
    depths = _depths(weights)
    _require_first_blocks(weights)
    return {
        "spatial_dims": dims_of(weights),
        "in_channels": weights[STEM].shape[1],
        "embed_dim": weights[STEM].shape[0],
        "depths": depths,
        **_attention_facts(weights),
        **_parts_there(weights),
    }


def _attention_facts(weights: Weights) -> dict:
    """What the attention of the stages' first blocks says of the config."""
    tables = [weights[f"{first}attn.{TABLE}"] for first in FIRST_BLOCKS]
    hidden, width = weights[f"{FIRST_BLOCKS[0]}mlp.linear1.weight"].shape
    return {
        "heads": tuple(table.shape[1] for table in tables),
        "window": window_of(tables[0], dims_of(weights)),
        "mlp_ratio": hidden / width,
    }


def _parts_there(weights: Weights) -> dict[str, bool]:
    """Which of the parts are there that not every Swin has."""
    return {
        "qkv_bias": f"{FIRST_BLOCKS[0]}attn.qkv.bias" in weights,
        "patch_norm": "patch_embed.norm.weight" in weights,
        "convolutions": any(name.startswith("layers1c.") for name in weights),
        "out_norms": any(name.startswith("out_norms.") for name in weights),
    }


def _depths(weights: Weights) -> tuple[int, ...]:
    """The number of blocks of each stage. Raises ValueError for a stage without any."""
    counts = [_blocks_of(stage, weights) for stage in range(1, 5)]
    if 0 in counts:
        raise ValueError(f"every one of a Swin's four stages must have blocks; found {counts}")
    return tuple(counts)


def _blocks_of(stage: int, weights: Weights) -> int:
    pattern = rf"layers{stage}\.0\.blocks\.\d+\.norm1\.weight"
    return sum(re.fullmatch(pattern, name) is not None for name in weights)


def _require_first_blocks(weights: Weights) -> None:
    """Raises ValueError where one of the stages' first blocks lacks what `facts` looks at."""
    parts = (f"attn.{TABLE}", "mlp.linear1.weight")
    needed = [first + part for first in FIRST_BLOCKS for part in parts]
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"{missing[0]} is missing, which every Swin has")
