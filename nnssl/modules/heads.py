"""Heads: projections to prototypes (self-distillation) and to embeddings (contrast, BYOL)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.cpu.products import in_fp32
from nnssl.modules.encoder_protocol import EncoderT
from nnssl.modules.running import Standardise
from nnssl.types import LAST, GradContext

if TYPE_CHECKING:
    from jaxtyping import Float


def pooled(tokens: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch channels"]:
    """The mean over tokens: [B C *grid] -> [B C]; in fp32 at least, as crops differ by little."""
    kind = torch.promote_types(tokens.dtype, torch.float32)
    return tokens.flatten(2).mean(dim=2, dtype=kind)


def unit(x: Tensor, eps: float) -> Tensor:
    """`x` [N d] in fp32, each row over its length or, where that is less, over `eps`."""
    return _Unit.apply(x.float(), eps)


class _Unit(torch.autograd.Function):
    """As `F.normalize`, with 4 kernels backward in place of 13."""

    @staticmethod
    def forward(ctx: GradContext, x: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
        out = x / length
        ctx.save_for_backward(out, length)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: GradContext, gradient: Tensor) -> tuple[Tensor, None]:
        out, length = ctx.saved_tensors
        along = (gradient * out).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, out, along, value=-1) / length, None


class Prototypes(nn.Linear):
    """Cosine similarity to K prototypes: a weight-normed linear layer whose norm is fixed at 1.

    [N bottleneck] (of unit length) -> [N K]. The same function as DINO's `weight_norm` last layer
    with g = 1, without the parametrisation, which `copy.deepcopy` refuses.
    """

    keeps_fp32 = True
    lengths: Tensor

    def __init__(self, bottleneck: int, count: int) -> None:
        super().__init__(bottleneck, count, bias=False)
        self.register_buffer("lengths", torch.ones(count, 1), persistent=False)

    def forward(self, x: Float[Tensor, "rows bottleneck"]) -> Float[Tensor, "rows prototypes"]:
        """In fp32 always: bf16's error of 0.004 is 0.1 once divided by a temperature of 0.04."""
        with in_fp32(x.device):
            rows = torch._weight_norm(self.weight.float(), self.lengths, 0)  # one kernel each way
            return F.linear(x.float(), rows)


class PrototypeHead(nn.Module):
    """Standardise, MLP d-hidden-hidden-bottleneck with GELU, L2 norm, prototypes. [N d] -> logits
    [N K] in [-1, 1].

    Caron 2021 (DINO), section 3.1; Zhou 2022 (iBOT) uses the same head for patch tokens. The first
    step is ours: see `Standardise` for why.
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
        self.mlp.apply(_initialise)

    def forward(
        self, x: Float[Tensor, "rows channels"], counts: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows prototypes"]:
        """`counts` [N]: which rows move the running moments; None: all of them."""
        bottleneck = self.mlp(self.standardise(x, counts))
        return self.prototypes(unit(bottleneck, eps=1e-6))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def _layers(dim: int, hidden: int, out: int, count: int) -> nn.Sequential:
    """`count` linear layers, and layer norm and ReLU between them."""
    layers: list[nn.Module] = []
    for _ in range(count - 1):
        layers += [nn.Linear(dim, hidden, bias=False), nn.LayerNorm(hidden), nn.ReLU()]
        dim = hidden
    return nn.Sequential(*layers, nn.Linear(dim, out))


class Projector(nn.Module):
    """An MLP: [N d] -> [N out]. Its output is what contrast and BYOL compare; thrown away
    afterwards.

    Chen 2020 (SimCLR), section 4.2. The authors of SimCLR, MoCo v3 and BYOL put batch norm between
    the layers, which a few 3D scans per batch do not allow: its statistics would be noise, and
    within two scans they give the answer away. Here it is layer norm. No running moments either:
    what is trained runs ahead of them, and SimCLR's gradients grew tenfold within 60 steps. A slow
    teacher does not: see `Standardise` in MoCo v3 and BYOL.
    """

    def __init__(self, dim: int, hidden: int, out: int, layers: int) -> None:
        super().__init__()
        self.mlp = _layers(dim, hidden, out, layers)

    def forward(self, x: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows out"]:
        return self.mlp(x)


class Predictor(nn.Module):
    """A two-layer MLP after the student's projector that predicts the teacher's output: [N out] ->
    [N out].

    Grill 2020 (BYOL), section 3.1; Chen 2021 (MoCo v3), section 3.
    """

    def __init__(self, out: int, hidden: int) -> None:
        super().__init__()
        self.mlp = _layers(out, hidden, out, 2)

    def forward(self, x: Float[Tensor, "rows out"]) -> Float[Tensor, "rows out"]:
        return self.mlp(x)


class Branch(nn.Module, Generic[EncoderT]):
    """Encoder, mean of its last tokens, projector: images [N 1 *size] -> pooled [N d], projected [N
    out].
    """

    def __init__(self, encoder: EncoderT, hidden: int, out: int, layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.channels[-1], hidden, out, layers)

    def forward(
        self, image: Float[Tensor, "batch _ *size"]
    ) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch out"]]:
        embedding = pooled(self.encoder(image, wanted=LAST)[-1])
        return embedding, self.projector(embedding)
