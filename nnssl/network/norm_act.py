"""Instance norm and LeakyReLU, for the channels-last maps of the CNN decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnssl.cpu import norm_act_in_place as in_place
from nnssl.encoder.norms import instance_norm

SLOPE = in_place.SLOPE


def norm_act(x: Tensor, act: bool = True) -> Tensor:
    """Instance norm without affine, then LeakyReLU if `act`; [B C *spatial] to the same shape.

    May overwrite `x`: pass only what nothing else reads, such as a convolution's output.
    A map of one voxel has no statistics and is not normalised.
    """
    if in_place.is_supported(x) and x[0, 0].numel() > 1:
        return in_place.norm_act(x, act)
    x = instance_norm(x)
    return F.leaky_relu(x, SLOPE) if act else x


def norm_of(x: Tensor) -> Tensor:
    """Instance norm alone, of what others read as well."""
    return norm_act(x.clone() if in_place.is_supported(x) else x, act=False)
