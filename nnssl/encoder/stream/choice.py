"""Whether the Triton kernels of the residual stream can be used: they are tested on a small input
of each width, once (`nnssl.encoder.kernel_check`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.kernel_check import (
    TOLERANCES,
    as_in_training,
    fault,
    keep_largest,
    warn_once,
)

MOST_CHANNELS = 4096
Outputs = Sequence[Tensor | None]


def is_supported(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """False, after a warning, where it should be and is not."""
    if device.type != "cuda" or dtype not in TOLERANCES or channels > MOST_CHANNELS:
        return False
    return _tried(device, dtype, channels)


@lru_cache(maxsize=64)
def _tried(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    reason = fault(
        device, dtype, lambda: stream_kernel_errors(device, dtype, channels), f"{channels} channels"
    )
    if reason:
        warn_once(device, "the residual stream", reason)
    return not reason


def formula(
    x: Tensor,
    branch: Tensor | None,
    kept: Tensor | None,
    order: Tensor | None,
    norm: nn.LayerNorm | None,
    parts: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """What `launch.added_norm` computes; `parts` [1 3 C] are zeros."""
    scale, offset, bias = parts[0]
    if branch is not None:
        x = x + (branch + bias) * (1 if kept is None else kept)
    x = x if order is None else x[:, order]
    if norm is None:
        return x, None
    return x, F.layer_norm(x, x.shape[-1:], norm.weight + scale, norm.bias + offset)


@dataclass(frozen=True)
class StreamCase:
    """What a stage asks of the kernel: to add a branch, drop part of it, reorder, normalise."""

    adds: bool
    drops: bool
    moves: bool
    norms: bool


CASES = (
    StreamCase(adds=False, drops=False, moves=True, norms=True),
    StreamCase(adds=True, drops=False, moves=False, norms=True),
    StreamCase(adds=True, drops=True, moves=True, norms=True),
    StreamCase(adds=True, drops=True, moves=False, norms=True),
    StreamCase(adds=True, drops=False, moves=True, norms=False),
    StreamCase(adds=True, drops=True, moves=True, norms=False),
)
SHAPE = (3, 37)  # samples and tokens


def stream_kernel_errors(
    device: torch.device, dtype: torch.dtype, channels: int
) -> dict[str, float]:
    """The kernels' largest errors against the formula in fp64, as fractions of the lengths."""
    from nnssl.encoder.stream import launch

    trial = _Trial(device, dtype, channels)
    with as_in_training(device):
        for case in CASES:
            added_norm = trial.inputs_of(case)
            leaves = [*trial.tokens(1 + case.adds), trial.zeros(1, 3, channels)]
            ours, exact = partial(added_norm, launch.added_norm), partial(added_norm, formula)
            trial.compare(ours, exact, leaves, outputs=1 + case.norms)
        trial.compare(
            lambda x, parts: [launch.gelu(x, parts)],
            lambda x, parts: [F.gelu(x + parts)],
            [*trial.tokens(1), trial.zeros(1, channels)],
            outputs=1,
        )
    return trial.errors


class _Trial:
    """Small inputs, and the largest `errors` so far."""

    def __init__(self, device: torch.device, dtype: torch.dtype, channels: int) -> None:
        self.device, self.dtype, self.channels = device, dtype, channels
        self.errors: dict[str, float] = {}
        self._generator = torch.Generator().manual_seed(0)  # of its own: a run's must not move
        self._order = torch.randperm(SHAPE[1], generator=self._generator).to(device)

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.device, self.dtype)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def tokens(self, count: int) -> list[Tensor]:
        return [self.drawn(*SHAPE, self.channels) for _ in range(count)]

    def inputs_of(self, case: StreamCase) -> Callable[..., Outputs]:
        """Calls a function like `formula` with x, a branch if one is added, and `parts`."""
        kept = self.drawn(SHAPE[0], 1, 1) if case.drops else None
        order = self._order if case.moves else None
        norm = self._norm() if case.norms else None

        def call(function: Callable[..., Outputs], *given: Tensor) -> Outputs:
            *tensors, parts = given
            x, branch = tensors if case.adds else (*tensors, None)
            own_kept = None if kept is None else kept.to(x.dtype)
            own_norm = None if norm is None else copy.deepcopy(norm).to(x.dtype)
            return function(x, branch, own_kept, order, own_norm, parts)

        return call

    def _norm(self) -> nn.LayerNorm:
        norm = nn.LayerNorm(self.channels, device=self.device, dtype=self.dtype)
        norm.weight.data, norm.bias.data = self.drawn(self.channels), self.drawn(self.channels)
        return norm

    def compare(
        self,
        ours: Callable[..., Outputs],
        exact: Callable[..., Outputs],
        leaves: list[Tensor],
        outputs: int,
    ) -> None:
        """Outputs and gradients of both; `ours` is given the last leaf once per program."""
        from nnssl.encoder.stream import launch

        programs = launch.programs(leaves[0])
        gradients = self.tokens(outputs)
        *own, parts = _leaves(leaves)
        spread = parts.expand(programs, *parts.shape[1:])
        found = _all(ours(*own, spread), [*own, parts], gradients)
        wide = _leaves([leaf.double() for leaf in leaves])
        wanted = _all(exact(*wide), wide, [gradient.double() for gradient in gradients])
        names = ["output"] * outputs + ["gradient"] * len(leaves)
        keep_largest(self.errors, names, found, wanted)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _all(outputs: Outputs, leaves: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of the leaves."""
    outs = [out for out in outputs if out is not None]
    leaf_gradients = torch.autograd.grad(outs, leaves, gradients)
    return [*(out.detach() for out in outs), *leaf_gradients]
