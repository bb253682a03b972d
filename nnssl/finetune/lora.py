"""LoRA: the encoder is trained by low-rank updates (Hu et al. 2021, arXiv 2106.09685).

    W + alpha / rank * B A          W [rows columns] stays, A [rank columns] and B [rows rank] learn

of the attention's `qkv` and `proj` and the MLP's two layers, in every block. B starts at zero, so
that the first output is the pretrained network's. Norms, biases, position biases and the patch
embedding, which are small, learn as they are; the merges' matrices stay.

In a state_dict the sums stand in the place of W, under its name: prediction, `-pretrained_weights`
and all else see a network without LoRA. W, A and B themselves lie in the optimiser's state, from
where `--c` continues.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nnssl.encoder.swin import Swin
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.recipe import Recipe

MATRICES = ("attn.qkv", "attn.proj", "mlp.linear1", "mlp.linear2")  # of a block
WHOLE = ("patch_embed.", "relative_position_bias_table")  # in the names of what learns as it is
STATE = "lora"  # beside the optimiser's own entries
INSIDE = "parametrizations.weight."  # PyTorch's name for what a weight is computed from


class LowRank(nn.Module):
    """A weight [rows columns] to the sum that stands in its place, in the weight's precision."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))  # as in the paper's code

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.b, self.a, alpha=self.scale)


def add_lora(network: SwinUNETR, recipe: Recipe) -> None:
    """Freeze the encoder's matrices and give those of MATRICES their factors.

    Before the optimiser is made and DDP wraps the network.
    """
    _freeze_matrices(network.encoder)
    blocks = [block for stage in network.encoder.stages for block in stage.blocks]
    for block in blocks:
        for name in MATRICES:
            _add_factors(cast("nn.Linear", block.get_submodule(name)), recipe)


def _freeze_matrices(encoder: Swin) -> None:
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(parameter.ndim == 1 or any(part in name for part in WHOLE))


def _add_factors(layer: nn.Linear, recipe: Recipe) -> None:
    factors = LowRank(layer.weight, recipe.lora_rank, recipe.lora_alpha)
    parametrize.register_parametrization(layer, "weight", factors)
    layer.register_state_dict_post_hook(_merge)
    layer.register_load_state_dict_pre_hook(_split)


def keep_factors(network: SwinUNETR, optimizer: torch.optim.Optimizer) -> None:
    """Save W, A and B with the optimiser's state, and take them from there.

    They are loaded before all else in that state: the average of the weights is found in the
    network.
    """
    inner = {name: p for name, p in network.named_parameters() if INSIDE in name}

    def save(_: object, state: dict) -> dict:
        return state | {STATE: {name: p.detach().clone() for name, p in inner.items()}}

    @torch.no_grad()
    def load(_: object, state: dict) -> dict:
        for name, tensor in state.pop(STATE, {}).items():
            inner[name].copy_(tensor)
        return state

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load, prepend=True)


def describe_lora(network: SwinUNETR, recipe: Recipe) -> str:
    """Line for the log."""
    parameters = list(network.encoder.parameters())
    in_factors = _count(p for part in _factors(network.encoder) for p in part.parameters())
    learning = _count(p for p in parameters if p.requires_grad)
    return (
        f"LoRA of rank {recipe.lora_rank}, alpha {recipe.lora_alpha:g}: of the encoder's "
        f"{_count(parameters) - in_factors} parameters the matrices are frozen; trained are "
        f"{in_factors} in factors and {learning - in_factors} in biases, norms and patch embedding"
    )


def _factors(module: nn.Module) -> list[LowRank]:
    return [part for part in module.modules() if isinstance(part, LowRank)]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _merge(layer: nn.Linear, state: dict, prefix: str, *_: object) -> None:
    """After a layer has written its parts: the sum in their place."""
    for name in [name for name in state if name.startswith(prefix + INSIDE)]:
        del state[name]
    state[prefix + "weight"] = layer.weight.detach()


def _split(layer: nn.Linear, state: dict, prefix: str, *_: object) -> None:
    """Before a layer reads its parts: a weight is W, and nothing has been added to it yet."""
    if (weight := state.pop(prefix + "weight", None)) is not None:
        (factors,) = _factors(layer)
        inside = prefix + INSIDE
        state[inside + "original"] = weight
        state[inside + "0.a"] = factors.a.detach()
        state[inside + "0.b"] = torch.zeros_like(factors.b)
