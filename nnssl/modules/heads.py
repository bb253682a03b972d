"""Projection heads of the self-distillation family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.modules.running import Standardise


class Prototypes(nn.Linear):
    """Cosine similarity to K prototypes: a weight-normed linear layer whose norm is fixed at 1.

    [N bottleneck] (of unit length) -> [N K]. The same function as DINO's `weight_norm` last layer with g = 1,
    without the parametrisation, which `copy.deepcopy` refuses.
    """

    def __init__(self, bottleneck: int, count: int) -> None:
        super().__init__(bottleneck, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=-1))


class PrototypeHead(nn.Module):
    """Standardise, MLP d-hidden-hidden-bottleneck with GELU, L2 norm, prototypes. [N d] -> logits [N K] in [-1, 1].

    Caron 2021 (DINO), section 3.1; Zhou 2022 (iBOT) uses the same head for patch tokens. The first step is ours:
    see `Standardise` for why.
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.standardise = Standardise(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = Prototypes(bottleneck, prototypes)
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(F.normalize(self.mlp(self.standardise(x)), dim=-1, eps=1e-6))
