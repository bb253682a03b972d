"""Decoders of pretext tasks: from tokens back to voxels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nnssl.modules.encoder_protocol import EncoderLike
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped


class VoxelDecoder(nn.Module):
    """One linear layer from a token to the cube of voxels it stands for (Xie 2022, SimMIM: "a
    linear layer").

    [B channels *grid] -> [B 1 *size], where grid = ceil(size / stride); what lies beyond `size` is
    cut off.
    """

    def __init__(self, channels: int, stride: int, spatial_dims: int) -> None:
        super().__init__()
        self.stride = stride
        self.spatial_dims = spatial_dims
        self.to_voxels = nn.Linear(channels, stride**spatial_dims)

    def forward(
        self, tokens: Float[Tensor, "batch channels *grid"], size: Shape
    ) -> Float[Tensor, "batch 1 *size"]:
        voxels = self.to_voxels(tokens.movedim(1, -1))
        cubes = voxels.unflatten(-1, [self.stride] * self.spatial_dims)
        return unfold_cubes(cubes)[(..., *(slice(s) for s in size))].unsqueeze(1)


class MultiScaleDecoder(nn.Module):
    """One `VoxelDecoder` for each of the encoder's maps of stride `from_stride` and above, each on
    its own.

    With the last map alone this is SimMIM's decoder. More maps let the gradient reach the stages
    that become skips without passing the narrow end (Wang 2023, LocalMIM, arXiv 2303.05251). Their
    predictions are not summed: the finer maps would explain everything, and the last one, which
    nobody needed then, became a constant.
    """

    def __init__(self, encoder: EncoderLike, from_stride: int) -> None:
        super().__init__()
        self.first = encoder.strides.index(from_stride)
        self.maps = tuple(range(self.first, len(encoder.strides)))  # that are read
        dims = encoder.config.spatial_dims
        self.decoders = nn.ModuleList(
            VoxelDecoder(encoder.channels[number], encoder.strides[number], dims)
            for number in self.maps
        )

    def forward(
        self,
        maps: list[Float[Tensor, "batch _ *_"] | None],
        image: Float[Tensor, "batch _ *size"],
        hidden: Bool[Tensor, "batch 1 *size"],
    ) -> list[Float[Tensor, "batch 1 *size"]]:
        """The encoder's five maps -> a prediction [B 1 *size] from each that is decoded, the finest
        first.

        Of the image [B 1 *size] only the size is used, and nothing of `hidden`.
        """
        size = tuple(image.shape[2:])
        return [
            decoder(tokens, size)
            for decoder, tokens in zip(self.decoders, maps[self.first :], strict=True)
        ]


def unfold_cubes(cubes: Shaped[Tensor, "batch *grid_and_cube"]) -> Shaped[Tensor, "batch *size"]:
    """[B *grid *cube] -> [B *(grid * cube)]: a grid of cubes put together, each at its place; in
    fp32 at least.
    """
    dims = cubes.ndim // 2
    batch, grid, cube = len(cubes), cubes.shape[1 : 1 + dims], cubes.shape[1 + dims :]
    order = [0, *(axis for d in range(dims) for axis in (1 + d, 1 + dims + d))]
    # cast, where it is one, and reordering are one kernel
    wide = torch.promote_types(cubes.dtype, torch.float32)
    cubes = cubes.permute(order).to(wide, memory_format=torch.contiguous_format)
    if math.prod(grid) == 0:
        raise ValueError(f"an empty token grid {tuple(grid)} cannot be decoded; use a larger crop")
    return cubes.reshape(batch, *(g * side for g, side in zip(grid, cube, strict=True)))
