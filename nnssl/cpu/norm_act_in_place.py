"""Instance norm and LeakyReLU in place, on the channels-last maps of the CNN decoder.

On a CPU the memory traffic of these steps and their freshly mapped buffers cost as much as a
convolution. So they are done on the convolution's output and inverted in the backward pass (Rota
Bulò et al., In-Place Activated BatchNorm, arXiv 1712.02616).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.types import GradContext

SLOPE = 0.01
EPSILON = 1e-5
PART = 2**19  # numbers worked on at a time, so that they stay in the processor's cache


def is_supported(x: Tensor) -> bool:
    """On a CPU, in fp32, not traced by a compiler."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and not torch.compiler.is_compiling()


def norm_act(x: Tensor, act: bool) -> Tensor:
    """Instance norm without affine, then LeakyReLU if `act`; overwrites [B C *spatial]."""
    return _NormActInPlace.apply(_channels_last(x), act)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(
        memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    )


def _voxel_view(x: Tensor) -> Tensor:
    """The channels-last [B C *spatial] seen as [B voxels C]."""
    return x.movedim(1, -1).flatten(1, -2)


def _voxel_chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Views of [B some-voxels C] that make up `x`."""
    return _voxel_view(x).split(max(1, PART // (x.shape[0] * x.shape[1])), dim=1)


class _Context(GradContext, Protocol):
    act: bool


class _NormActInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, act: bool) -> Tensor:
        rows = _voxel_view(x)
        mean = rows.mean(1, keepdim=True)
        square = torch.zeros_like(mean)
        for part in _voxel_chunks(x):
            part.sub_(mean)
            square += (part * part).sum(1, keepdim=True)
        rstd = (square / rows.shape[1] + EPSILON).rsqrt_()
        for part in _voxel_chunks(x):
            part.mul_(rstd)
            if act:
                F.leaky_relu_(part, SLOPE)
        ctx.act = act
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, rstd)
        return x

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        y, rstd = ctx.saved_tensors
        out = torch.empty_like(y)
        parts = list(
            zip(*(_voxel_chunks(t) for t in (y, _channels_last(gradient), out)), strict=True)
        )
        total, along = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for y_part, g_part, out_part in parts:
            if ctx.act:
                torch.ops.aten.leaky_relu_backward.grad_input(
                    g_part, y_part, SLOPE, True, grad_input=out_part
                )
                y_part = F.leaky_relu(y_part, 1 / SLOPE)
            else:
                out_part.copy_(g_part)
            total += out_part.sum(1, keepdim=True)
            along += (out_part * y_part).sum(1, keepdim=True)
        voxels = _voxel_view(y).shape[1]
        shift, tilt = total.mul_(rstd / -voxels), along.mul_(rstd / -voxels)
        for y_part, _, out_part in parts:
            if ctx.act:
                y_part = F.leaky_relu(y_part, 1 / SLOPE)
            out_part.mul_(rstd).add_(shift).addcmul_(y_part, tilt)
        return out, None
