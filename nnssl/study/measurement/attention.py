"""How far a block looks: the mean attention distance of each head, in mm (Dosovitskiy et al. 2021,
fig. 7).

A query's distance is the mean of the distances to the tokens of its window, weighted by its
attention to them; a head's is the mean over all queries of all scans. Windows bound it: compare a
head with the distance of attention that is the same for all tokens, which `uniform` gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnssl.encoder.blocks import Block, WindowAttention
from nnssl.encoder.swin import Swin
from nnssl.encoder.windows import WindowPartition
from nnssl.types import Shape, Spacing

PART = 2**22  # attention weights that are in memory at a time


def distances(size: Shape, token: Spacing) -> Tensor:
    """[n n] mm between the centres of a window's slots; `token` is the mm from one token to the
    next, by axis.
    """
    axes = torch.meshgrid(
        *(torch.arange(s) * mm for s, mm in zip(size, token, strict=True)), indexing="ij"
    )
    places = torch.stack([axis.flatten() for axis in axes], dim=1).double()
    return torch.cdist(places, places)


def weights(
    attention: WindowAttention, windows: Tensor, bias: Tensor, mask: Tensor | None
) -> Tensor:
    """Softmax attention [W heads n n] of the slots [W n C]; bias [heads n n]; mask: [W n n] to
    add, or None.
    """
    n, channels = windows.shape[1:]
    q, k, _ = (
        attention.qkv(windows).view(len(windows), n, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    )
    scores = q @ k.transpose(-2, -1) * (channels // attention.heads) ** -0.5 + bias
    return (scores if mask is None else scores + mask[:, None]).softmax(-1)


class AttentionDistance:
    """Watches the blocks of an encoder while it encodes; `rows()` are the means so far.

    with AttentionDistance(encoder, spacing) as watch:
        for image in images:
            encoder(image)

    spacing: mm of a voxel, in the encoder's axes.
    """

    def __init__(self, encoder: Swin, spacing: Spacing) -> None:
        self.encoder, self.names, self.tokens = encoder, [], []
        token = list(spacing)
        for number, stage in enumerate(encoder.stages):
            token = [mm * step for mm, step in zip(token, encoder.config.step(number), strict=True)]
            self.names += [
                f"stage {number + 1} block {place + 1}" for place in range(len(stage.blocks))
            ]
            self.tokens += [tuple(token)] * len(stage.blocks)
        self.sums = [torch.zeros(block.attn.heads, dtype=torch.double) for block in self._blocks()]
        self.queries = [0] * len(self.sums)
        self.uniform_sums = [0.0] * len(self.sums)
        self._hooks: list = []

    def __enter__(self) -> AttentionDistance:
        for place, block in enumerate(self._blocks()):
            self._hooks.append(block.attn.register_forward_pre_hook(self._watcher(place)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def rows(self) -> list[dict]:
        """{"layer", "head", "mm", "uniform_mm"} of every head; heads from 1."""
        return [
            {"layer": name, "head": head + 1, "mm": float(total / n), "uniform_mm": uniform / n}
            for name, totals, n, uniform in zip(
                self.names, self.sums, self.queries, self.uniform_sums, strict=True
            )
            for head, total in enumerate(totals)
            if n
        ]  # fmt: skip

    def _blocks(self) -> list[Block]:
        blocks = (block for stage in self.encoder.stages for block in stage.blocks)
        return [block for block in blocks if isinstance(block, Block)]

    def _watcher(self, place: int) -> Callable[[WindowAttention, tuple], None]:
        def watch(module: WindowAttention, arguments: tuple) -> None:
            self._add(place, module, *arguments)

        return watch

    @torch.no_grad()
    def _add(
        self, place: int, module: WindowAttention, x: Tensor, cut: WindowPartition, bias: Tensor
    ) -> None:
        mm = distances(cut.size, self.tokens[place]).to(x.dtype).to(x.device)
        n = len(mm)
        windows = x.reshape(-1, n, x.shape[-1])
        real = torch.ones(len(windows), n, device=x.device)
        if cut.real is not None:
            real = cut.real.view(-1, n).repeat(len(x), 1)
        for part in torch.arange(len(windows), device=x.device).split(
            max(1, PART // (module.heads * n * n))
        ):
            mask = _mask_of(part, cut)
            seen = weights(module, windows[part], bias, mask)
            far = torch.einsum("whqk,qk->whq", seen, mm)  # w windows, h heads, q queries, k keys
            self.sums[place] += torch.einsum("whq,wq->h", far, real[part]).double().cpu()
            even = (
                torch.ones(len(part), n, n, device=x.device)
                if mask is None
                else (mask > -1).to(x.dtype)
            )
            even_far = (even * mm).sum(-1) / even.sum(-1)
            self.uniform_sums[place] += float((even_far * real[part]).sum())
        self.queries[place] += int(real.sum())


def _mask_of(part: Tensor, cut: WindowPartition) -> Tensor | None:
    """[len(part) n n] of the windows `part`, which count on from sample to sample."""
    if cut.mask is None:
        return None
    return cut.mask.patterns[cut.mask.which[part % len(cut.mask.which)]]
