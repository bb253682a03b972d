"""Fine stages on an image's visible blocks alone; mask tokens enter the grid behind them.

    image -> visible blocks -> patches -> stage 1 -> merge -> stage 2 -> merge -+-> grid of stride 8
                                                          mask tokens elsewhere -+

Or one stage later: stage 3 as well, and the grid of stride 16. The fine stages make most of the
cost and see little beyond a block, so what is hidden need not be computed there. He et al. 2022
(MAE, arXiv 2111.06377) leave hidden tokens out of the whole encoder; Huang et al. 2022 (GreenMIM,
arXiv 2205.13515) do so in a Swin, whose unevenly filled windows they group. Here windows are never
uneven, because they end where a block does.

Every visible block passes as a small image of its own. Attention stays inside it; windows begin
at its corner; shifted windows are shifted and masked inside its borders, as they are inside those
of an image; a window longer than the block is clipped to it, and then nothing is shifted along that
axis. So a block as large as the image gives the dense encoder, and so do blocks of whole windows
where a stage has a single, unshifted layer.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.encoder.blocks import HALF
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.stage_inputs import stage_inputs
from nnssl.shapes import floor_div
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Float

    from nnssl.encoder.swin import Swin

NO_TOKEN = "this encoder has no mask token of stride 8 or 16; call mask_at_stride(encoder, 8) first"
TOKEN_STRIDES = (8, 16)  # where mask tokens may enter; at 32 no stage would be left to fill them


class Visible(NamedTuple):
    """What of an image is computed by the stages before the mask token.

    blocks: int64 [B m], raster numbers on the grid of blocks, each at most once an image. The same
    number m for every image, so that shapes are static.
    side:   of a block, in voxels, one per axis.
    """

    blocks: Tensor
    side: Shape


def mask_at_stride(encoder: Swin, stride: int) -> None:
    """Give `encoder` a mask token that enters the grid of `stride` voxels, in place of the one of
    the patches.

    At 8 stages 1 and 2 compute visible blocks alone, at 16 stage 3 too. It has the same name, and
    that grid's width. Raises ValueError for another stride, or for an encoder whose finer maps
    nobody could do without.
    """
    if stride not in TOKEN_STRIDES:
        raise ValueError(
            f"mask tokens enter at stride 8 or 16 (visible blocks alone), got {stride}"
        )
    _check_taps(encoder.config)
    stages = encoder.strides.index(stride)
    token = torch.randn(encoder.channels[stages]) * 0.02  # as that of the patches
    encoder.mask_token = nn.Parameter(token)


def _check_taps(config: SwinConfig) -> None:
    if config.taps != "stage" or config.convolutions:
        raise ValueError(
            'visible blocks alone need an encoder of taps "stage" without convolutions, as our '
            f"presets are; got taps={config.taps!r}, convolutions={config.convolutions}. Set "
            "visible_only=false, or start from a preset"
        )


def stages_before(encoder: Swin) -> int:
    """How many stages come before the mask token: 2 or 3, or 0 where it is that of the patches, or
    there is none.
    """
    token = encoder.mask_token
    return 0 if token is None else encoder.channels.index(len(token))


def require_blocks_fit(encoder: Swin, x: Tensor, visible: Visible) -> None:
    """Raises ValueError where `visible` does not fit the image [B C *spatial] or the encoder."""
    if not stages_before(encoder):
        raise ValueError(NO_TOKEN)
    _check_side(visible.side, encoder.config.stride(stages_before(encoder)), tuple(x.shape[2:]))
    _check_numbers(visible.blocks, x)


def _check_side(side: Shape, stride: Shape, spatial: Shape) -> None:
    if not _divides_evenly(side, stride, spatial):
        raise ValueError(
            f"visible blocks must have sides that are multiples of {stride} voxels and divide the "
            f"image {spatial}, got {tuple(side)}"
        )


def _check_numbers(blocks: Tensor, x: Tensor) -> None:
    if blocks.ndim != 2 or len(blocks) != len(x) or blocks.dtype != torch.int64:
        raise ValueError(
            f"visible blocks must be int64 [{len(x)} m], got {blocks.dtype} {tuple(blocks.shape)}"
        )


def _divides_evenly(side: Shape, stride: Shape, spatial: Shape) -> bool:
    """Whether a block is of whole tokens, and the image of whole blocks."""
    return len(side) == len(stride) and all(
        n > 0 and n % s == 0 and size % n == 0
        for n, s, size in zip(side, stride, spatial, strict=True)
    )


def coarse_tokens(
    encoder: Swin, x: Float[Tensor, "batch channels *size"], visible: Visible
) -> Float[Tensor, "batch *grid width"]:
    """[B C *spatial] to the tokens of the grid that the mask token enters [B *grid C']: visible
    ones computed, others the mask token.
    """
    if encoder.mask_token is None:
        raise ValueError(NO_TOKEN)
    blocks = floor_div(x.shape[2:], visible.side)
    rows = _numbers_in_batch(visible.blocks, prod(blocks))
    kind = encoder.patch_embed.proj.weight.dtype
    x = x.to(kind) if kind in HALF else x
    parts = _split_into_blocks(x.movedim(1, -1), blocks).flatten(0, 1).index_select(0, rows)
    tokens = _computed(encoder, parts.movedim(-1, 1))
    shape = tokens.shape[1:]
    # The rows are distinct, so the gradient is a plain selection: no sum whose order could vary.
    token = encoder.mask_token.to(tokens.dtype).expand(len(x) * prod(blocks), *shape)
    return _join_blocks(token.index_copy(0, rows, tokens).view(len(x), *blocks, *shape))


def _numbers_in_batch(blocks: Tensor, count: int) -> Tensor:
    """The numbers of `blocks` [B m] among the `count` blocks of each of all images, [B*m]."""
    first = torch.arange(len(blocks), device=blocks.device)[:, None] * count
    return (first + blocks).flatten()


def _computed(encoder: Swin, parts: Tensor) -> Tensor:
    """Blocks [n C *side] to their tokens of the grid that the mask token enters [n *grid C']."""
    tokens = encoder.patch_embed(parts)
    stages = encoder.stages[: stages_before(encoder)]
    for stage, own in zip(stages, stage_inputs(stages, tokens), strict=True):
        tokens = stage.downsample(stage(tokens, own, encoder.checkpointing))
    return tokens


def _split_into_blocks(x: Tensor, blocks: Shape) -> Tensor:
    """[B *size C] to [B count *side C], the blocks in raster order."""
    dims = len(blocks)
    side = floor_div(x.shape[1:-1], blocks)
    split = [n for pair in zip(blocks, side, strict=True) for n in pair]
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
    return x.reshape(len(x), *split, x.shape[-1]).permute(order).flatten(1, dims)


def _join_blocks(x: Tensor) -> Tensor:
    """[B *blocks *side C] to [B *(blocks * side) C]."""
    dims = (x.ndim - 2) // 2
    order = [0, *(a for d in range(dims) for a in (1 + d, 1 + dims + d)), 2 * dims + 1]
    size = [b * s for b, s in zip(x.shape[1 : 1 + dims], x.shape[1 + dims : -1], strict=True)]
    return x.permute(order).reshape(len(x), *size, x.shape[-1])
