"""Decoders of pretext tasks: from tokens back to voxels."""

from __future__ import annotations

import math

from torch import Tensor, nn

from nnssl.types import Shape


class VoxelDecoder(nn.Module):
    """One linear layer from a token to the cube of voxels it stands for (Xie 2022, SimMIM: "a linear layer").

    [B channels *grid] -> [B 1 *size], where grid = ceil(size / stride); what lies beyond `size` is cut off.
    """

    def __init__(self, channels: int, stride: int, spatial_dims: int) -> None:
        super().__init__()
        self.stride = stride
        self.spatial_dims = spatial_dims
        self.to_voxels = nn.Linear(channels, stride**spatial_dims)

    def forward(self, tokens: Tensor, size: Shape) -> Tensor:
        voxels = self.to_voxels(tokens.movedim(1, -1))
        return unfold_cubes(voxels, self.stride, self.spatial_dims)[(..., *(slice(s) for s in size))].unsqueeze(1)


def unfold_cubes(cubes: Tensor, stride: int, dims: int) -> Tensor:
    """[B *grid stride^dims] -> [B *(stride * grid)]: each token's numbers become its cube, in (z, y, x) order."""
    batch, *grid = cubes.shape[:-1]
    cubes = cubes.view(batch, *grid, *[stride] * dims)
    order = [0, *(axis for d in range(dims) for axis in (1 + d, 1 + dims + d))]
    cubes = cubes.permute(order)
    if math.prod(grid) == 0:
        raise ValueError(f"an empty token grid {tuple(grid)} cannot be decoded; use a larger crop")
    return cubes.reshape(batch, *(g * stride for g in grid))
