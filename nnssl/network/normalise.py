"""Instance norm, an added residual and LeakyReLU as one step, for the channels-last maps of the CNN
decoder.

On a CPU the step's memory traffic and its freshly mapped buffers cost as much as a convolution.
There it is done in place on the convolution's output and inverted in the backward pass (Rota Bulò
et al., In-Place Activated BatchNorm, arXiv 1712.02616). On a GPU PyTorch's own functions do it;
where a compiler fuses them, as nnU-Net has it by default, they are written so that channels stay
last. (PyTorch's instance norm puts them first, so that every convolution would turn its input
around again.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.01
EPSILON = 1e-5
PART = 2**19  # numbers worked on at a time, so that they stay in the processor's cache


def norm_act(x: Tensor, act: bool = True) -> Tensor:
    """Instance norm without affine, then LeakyReLU if `act`; [B C *spatial] to the same shape.

    May overwrite `x`: pass only what nothing else reads, such as a convolution's output.
    A map of one voxel has no statistics and is not normalised.
    """
    if x[0, 0].numel() == 1:
        return F.leaky_relu(x, SLOPE) if act else x
    compiled = torch.compiler.is_compiling()
    if x.device.type == "cpu" and x.dtype == torch.float32 and not compiled:
        return _NormActInPlace.apply(_channels_last(x), act)
    x = normalised(x) if compiled else F.instance_norm(x, eps=EPSILON)
    return F.leaky_relu(x, SLOPE) if act else x


def normalised(x: Tensor) -> Tensor:
    """Instance norm of [B C *spatial] in steps that keep its memory format; statistics in fp32,
    slow if not fused.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    variance, mean = torch.var_mean(wide, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return ((wide - mean) * (variance + EPSILON).rsqrt()).to(x.dtype)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(
        memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    )


def _rows(x: Tensor) -> Tensor:
    """The channels-last [B C *spatial] seen as [B voxels C]."""
    return x.movedim(1, -1).flatten(1, -2)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """Views of [B some-voxels C] that make up `x`."""
    return _rows(x).split(max(1, PART // (x.shape[0] * x.shape[1])), dim=1)


class _NormActInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, act: bool) -> Tensor:
        rows = _rows(x)
        mean = rows.mean(1, keepdim=True)
        square = torch.zeros_like(mean)
        for part in _parts(x):
            part.sub_(mean)
            square += (part * part).sum(1, keepdim=True)
        rstd = (square / rows.shape[1] + EPSILON).rsqrt_()
        for part in _parts(x):
            part.mul_(rstd)
            if act:
                F.leaky_relu_(part, SLOPE)
        ctx.act = act
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, rstd)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        y, rstd = ctx.saved_tensors
        out = torch.empty_like(y)
        parts = list(zip(*(_parts(t) for t in (y, _channels_last(gradient), out)), strict=True))
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
        voxels = _rows(y).shape[1]
        shift, tilt = total.mul_(rstd / -voxels), along.mul_(rstd / -voxels)
        for y_part, _, out_part in parts:
            if ctx.act:
                y_part = F.leaky_relu(y_part, 1 / SLOPE)
            out_part.mul_(rstd).add_(shift).addcmul_(y_part, tilt)
        return out, None
