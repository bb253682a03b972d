"""The mean attention distance of each head of a block, in mm (Dosovitskiy et al. 2021, fig. 7).

A query's distance is the mean of the distances to the tokens of its window, weighted by its
attention to them; a head's is the mean over all queries of all scans. Windows bound it: compare a
head with the distance of attention that is the same for all tokens, which `uniform` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nnssl.encoder.blocks import Block, WindowAttention
from nnssl.encoder.swin import Swin
from nnssl.encoder.windows import WindowPartition
from nnssl.types import Shape, Spacing

PART = 2**22  # attention weights that are in memory at a time


def distances(size: Shape, token: Spacing) -> Tensor:
    """[n n] mm between the centres of a window's slots; `token` is the mm from one token to the
    next, by axis.
    """
    steps = [torch.arange(slots) * mm for slots, mm in zip(size, token, strict=True)]
    centres = torch.cartesian_prod(*steps).view(-1, len(size)).double()
    return torch.cdist(centres, centres)


def weights(
    attention: WindowAttention, windows: Tensor, bias: Tensor, mask: Tensor | None
) -> Tensor:
    """Softmax attention [W heads n n] of the slots [W n C]; bias [heads n n]; mask: [W n n] to
    add, or None.
    """
    q, k = _queries_and_keys(attention, windows)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    return (scores if mask is None else scores + mask[:, None]).softmax(-1)


def _queries_and_keys(attention: WindowAttention, windows: Tensor) -> tuple[Tensor, Tensor]:
    """[W heads n C/heads] each."""
    qkv = attention.qkv(windows).unflatten(-1, (3, attention.heads, -1))
    return qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)


class HeadDistance(NamedTuple):
    """The mean attention distance of a head (from 1) of a layer, and that of even attention."""

    layer: str
    head: int
    mm: float
    uniform_mm: float

    @property
    def rounded(self) -> HeadDistance:
        return self._replace(mm=round(self.mm, 4), uniform_mm=round(self.uniform_mm, 4))


class AttentionDistance:
    """Watches the blocks of an encoder while it encodes; `rows()` are the means so far.

    with AttentionDistance(encoder, spacing) as watch:
        for image in images:
            encoder(image)

    spacing: mm of a voxel, in the encoder's axes.
    """

    def __init__(self, encoder: Swin, spacing: Spacing) -> None:
        self.encoder = encoder
        self.seen = [
            _BlockSums(f"stage {number + 1} block {index + 1}", _token(encoder, spacing, number),
                  torch.zeros(block.attn.heads, dtype=torch.double))
            for number, index, block in blocks_of(encoder)
        ]  # fmt: skip
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> AttentionDistance:
        for (*_, block), sums in zip(blocks_of(self.encoder), self.seen, strict=True):
            self._hooks.append(block.attn.register_forward_pre_hook(sums.add))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def rows(self) -> list[HeadDistance]:
        """Distances of every head."""
        return [row for sums in self.seen for row in sums.rows()]


@dataclass
class _BlockSums:
    """A block's sums over its queries so far. token: mm from one token to the next, by axis; sums:
    [heads] mm, float64; uniform: mm, of even attention.
    """

    name: str
    token: Spacing
    sums: Tensor
    queries: int = 0
    uniform: float = 0.0

    def rows(self) -> list[HeadDistance]:
        """Nothing before the first query."""
        if not self.queries:
            return []
        means = (self.sums / self.queries).tolist()
        return [HeadDistance(self.name, n, mm, self._even) for n, mm in enumerate(means, 1)]

    @property
    def _even(self) -> float:
        """mm, the mean of even attention."""
        return self.uniform / self.queries

    @torch.no_grad()
    def add(self, module: WindowAttention, arguments: tuple) -> None:
        """Hears what the block is given, before it is computed."""
        x, partition, bias = arguments
        mm = distances(partition.size, self.token).to(x)
        windows = x.reshape(-1, len(mm), x.shape[-1])
        occupied = _occupied(partition, windows, len(x))
        parts = torch.arange(len(windows), device=x.device)
        for part in parts.split(max(1, PART // (module.heads * mm.numel()))):
            mask = _mask_of(part, partition)
            self._add(weights(module, windows[part], bias, mask), mask, mm, occupied[part])
        self.queries += int(occupied.sum())

    def _add(self, attention: Tensor, mask: Tensor | None, mm: Tensor, occupied: Tensor) -> None:
        far = torch.einsum("whqk,qk->whq", attention, mm)  # w windows, h heads, q queries, k keys
        self.sums += torch.einsum("whq,wq->h", far, occupied).double().cpu()
        even = mm.new_ones(1, *mm.shape) if mask is None else (mask > -1).to(mm)
        self.uniform += float(((even * mm).sum(-1) / even.sum(-1) * occupied).sum())


def blocks_of(encoder: Swin) -> list[tuple[int, int, Block]]:
    """With the stage of each and its index there, from 0."""
    every = [
        (n, m, b) for n, stage in enumerate(encoder.stages) for m, b in enumerate(stage.blocks)
    ]
    return [(stage, index, block) for stage, index, block in every if isinstance(block, Block)]


def strides(encoder: Swin, stage: int) -> Shape:
    """Voxels from one token to the next in a stage, from 0, by axis."""
    return encoder.config.stride(stage)


def _token(encoder: Swin, spacing: Spacing, stage: int) -> Spacing:
    """The same in mm."""
    return tuple(mm * n for mm, n in zip(spacing, strides(encoder, stage), strict=True))


def _occupied(partition: WindowPartition, windows: Tensor, samples: int) -> Tensor:
    """[W n] 1 for slots that hold a token, 0 for those that fill a window up."""
    if partition.occupied is None:
        return windows.new_ones(windows.shape[:2])
    return partition.occupied.view(-1, windows.shape[1]).repeat(samples, 1)


def _mask_of(part: Tensor, partition: WindowPartition) -> Tensor | None:
    """[len(part) n n] of the windows `part`, which count on from sample to sample."""
    if partition.mask is None:
        return None
    return partition.mask.patterns[partition.mask.which[part % len(partition.mask.which)]]
