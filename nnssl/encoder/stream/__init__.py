"""The residual stream of a stage on a GPU: one kernel adds a branch, reorders and normalises.

    tokens -> window order, norm 1 -> attention -> +, norm 2 -> MLP -> +, shift, norm 1 -> ...

kernel   Triton: one kernel forward and one backward; `launch` starts them, `choice` says when.
Here is the stage made of them, the same as `Stage.forward` block by block. The gradients of norms
and biases arrive in parts, which are added up for all blocks of the stage at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.stage_inputs import StageInputs, blocks_of
from nnssl.encoder.stream import choice
from nnssl.encoder.windows import Reordering
from nnssl.types import GradContext

if TYPE_CHECKING:
    from nnssl.encoder.blocks import Block, Stage


def is_supported(stage: Stage, tokens: Tensor) -> bool:
    """Whether `through` is the right way for tokens [B N C]: one precision, nobody who watches
    blocks, no compiler, which does the same by itself, and a GPU on which the kernels are right.
    """
    return (
        not torch.compiler.is_compiling()
        # before the trial, which compiles; not every other device knows autocast
        and not (tokens.is_cuda and torch.is_autocast_enabled("cuda"))
        and choice.is_supported(tokens.device, tokens.dtype, tokens.shape[-1])
        and not torch.is_autocast_enabled(tokens.device.type)
        and all(_is_plain(block, tokens.dtype) for block in blocks_of(stage))
    )


def _is_plain(block: Block, dtype: torch.dtype) -> bool:
    """Whether nothing is added to it or watches it, and all is in one precision."""
    mlp = block.mlp
    layers = (block.attn.qkv, block.attn.proj, mlp.linear1, mlp.linear2)
    return (
        all(type(layer) is nn.Linear and layer.weight.dtype == dtype for layer in layers)
        and block.norm1.weight.dtype == dtype
        and mlp.linear1.out_features % mlp.linear1.in_features == 0
        and not any(part._forward_hooks or part._forward_pre_hooks for part in block.modules())
    )


def through(stage: Stage, tokens: Tensor, inputs: StageInputs) -> Tensor:
    """All blocks of a stage: [B N C] to [B N C], both in raster order."""
    from nnssl.encoder.blocks import from_slots, to_slots
    from nnssl.encoder.stream import launch  # Triton comes with PyTorch for CUDA only

    blocks = blocks_of(stage)
    parts = iter(_gradient_parts(blocks, launch.programs(tokens)))
    stream = _Stream(launch.added_norm, parts, tokens)
    normed = stream.add(None, None, stage.way_to(0, inputs.windows), blocks[0].norm1)
    for number, block in enumerate(blocks):
        partition, bias, scales = inputs.of_block(number)
        first, second = scales or (None, None)
        slots = to_slots(normed, partition, block.pads_are_zero)
        of_qkv = None if block.attn.qkv.bias is None else next(parts)
        attended = block.attn.attend(slots, partition, bias, of_qkv)
        attended = _without_bias_gradient(block.attn.proj, attended)
        normed = stream.add(from_slots(attended, partition), first, None, block.norm2)
        hidden = _without_bias_gradient(block.mlp.linear1, normed)
        inner = launch.gelu(hidden, next(parts))
        branch = _without_bias_gradient(block.mlp.linear2, inner)
        if block is blocks[-1]:
            stream.add(branch, second, stage.way_out(inputs.windows), None)
        else:
            way = stage.way_to(number + 1, inputs.windows)
            normed = stream.add(branch, second, way, blocks[number + 1].norm1)
    return stream.x


class _Stream:
    """The residual stream `x` [B N C], and the kernel that adds to it; each call takes a part."""

    def __init__(self, added_norm: Callable, parts: Iterator[Tensor], x: Tensor) -> None:
        self._added_norm, self._parts, self.x = added_norm, parts, x

    def add(
        self,
        branch: Tensor | None,
        kept: Tensor | None,
        way: Reordering | None,
        norm: nn.LayerNorm | None,
    ) -> Tensor:
        """Add a branch, as far as it is kept, and reorder; the normalised stream, if there is a
        norm.
        """
        order = None if way is None else way[0]
        self.x, normed = self._added_norm(self.x, branch, kept, order, norm, next(self._parts))
        return normed


def _without_bias_gradient(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer; the gradient of its bias is a sum that the kernel behind it gives."""
    return F.linear(x, layer.weight, layer.bias.detach())


def _gradient_parts(blocks: Sequence[Block], programs: int) -> tuple[Tensor, ...]:
    """Where each kernel of the stage, in order, puts its gradients of vectors, [programs rows C]:
    norm's scale and offset and the bias of the branch before; or that of q, k and v, or of the
    MLP's hidden layer.
    """
    channels = len(blocks[0].norm1.weight)
    vectors: list[list[Tensor]] = []
    branch = blocks[0].norm1.bias.detach()  # there is none before the first norm
    for block in blocks:
        vectors += _vectors(block, branch)
        branch = block.mlp.linear2.bias
    vectors.append([branch.detach(), branch.detach(), branch])  # no norm follows
    sizes = [sum(map(len, group)) // channels for group in vectors]
    return _Parts.apply(programs, channels, sizes, *chain.from_iterable(vectors))


def _vectors(block: Block, branch: Tensor) -> list[list[Tensor]]:
    """Those of each kernel of a block; `branch` is the bias with which the block before ends."""
    attention, mlp = block.attn, block.mlp
    of_qkv: list[list[Tensor]] = []
    if attention.qkv.bias is not None:
        of_qkv.append([attention.qkv.bias])
    return [
        [block.norm1.weight, block.norm1.bias, branch],
        *of_qkv,
        [block.norm2.weight, block.norm2.bias, attention.proj.bias],
        [mlp.linear1.bias],
    ]


class _PartsContext(GradContext, Protocol):
    lengths: list[int]
    dtype: torch.dtype


class _Parts(torch.autograd.Function):
    """Vectors as so many tensors [programs rows C] for the sake of their gradients: nothing is read
    of them. One sum adds up what arrives.
    """

    @staticmethod
    def forward(
        ctx: _PartsContext, programs: int, channels: int, sizes: list[int], *vectors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.lengths, ctx.dtype = [len(vector) for vector in vectors], vectors[0].dtype
        nothing = vectors[0].new_empty(1, dtype=torch.float32)
        return tuple(nothing.expand(programs, size, channels) for size in sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _PartsContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = torch.cat(gradients, dim=1).sum(0).to(ctx.dtype)
        return None, None, None, *total.flatten().split(ctx.lengths)
