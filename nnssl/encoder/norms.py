"""Instance norm that keeps channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.cpu.norm_act_in_place import EPSILON

if TYPE_CHECKING:
    from jaxtyping import Float


def instance_norm(
    x: Float[Tensor, "batch channels *size"],
) -> Float[Tensor, "batch channels *size"]:
    """[B C *spatial], each channel of each sample minus its mean, over its std; without affine.

    Statistics in fp32 at least. A map of one voxel has none and passes as it is. PyTorch's own puts
    channels first, so that every convolution before and after turns its map around; its batch norm
    does not, and that of one sample is an instance norm. Where a compiler fuses it, the formula;
    and on CPUs in half precision, in which they would keep the statistics as well.
    """
    if x[0, 0].numel() == 1:
        return x
    if torch.compiler.is_compiling() or (_is_half(x) and x.device.type == "cpu"):
        return formula(x)
    rest = (None, None, None, None, True, 0.0, EPSILON)
    plane = x.flatten(2, -2)  # the kernels for channels last know two axes
    samples = [torch.native_batch_norm(one, *rest)[0] for one in plane.split(1)]
    return torch.cat(samples).unflatten(2, x.shape[2:-1])


def formula(x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
    """The same in steps that keep the memory format: slow, if not fused."""
    wide = x.float() if _is_half(x) else x
    variance, mean = torch.var_mean(wide, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return ((wide - mean) * (variance + EPSILON).rsqrt()).to(x.dtype)


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)
