"""The convolutions that Swin UNETR v2 adds to a Swin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.norms import instance_norm

if TYPE_CHECKING:
    from jaxtyping import Float


class ResidualConvolution(nn.Module):
    """Two 3^d convolutions with instance norm around a skip: what Swin UNETR v2 (He 2023) puts
    before each stage.
    """

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.layer = nn.ModuleDict(  # the names are MONAI's
            {
                name: nn.ModuleDict({"conv": convolution(dim, dim, 3, padding=1, bias=False)})
                for name in ("conv1", "conv2")
            }
        )

    def forward(
        self, x: Float[Tensor, "batch *grid channels"]
    ) -> Float[Tensor, "batch *grid channels"]:
        """[B *grid C] to the same."""
        image = x.movedim(-1, 1)
        inner = F.leaky_relu(instance_norm(self._convolved("conv1", image)), 0.01)
        out = instance_norm(self._convolved("conv2", inner)) + image
        return F.leaky_relu(out, 0.01).movedim(1, -1).contiguous()

    def _convolved(self, name: str, x: Tensor) -> Tensor:
        return self.layer[name]["conv"](x)  # pyright: ignore[reportIndexIssue] again a ModuleDict
