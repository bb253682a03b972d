"""Whether the Triton kernels of the residual stream serve: they are tried on a small input, once.

They were proven without a GPU. So the first time a process needs them for a width, they are
compared with the formula in fp64 on the GPU at hand; where they differ or cannot run, PyTorch's own
operations are taken and one line says so.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl import dist
from nnssl.encoder.attention.choice import TOLERANCES, fault

MOST_CHANNELS = 4096
_said: set[torch.device] = set()


def kernel_serves(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """False, after a warning, where it should and does not."""
    if device.type != "cuda" or dtype not in TOLERANCES or channels > MOST_CHANNELS:
        return False
    return _tried(device, dtype, channels)


@lru_cache(maxsize=64)
def _tried(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    reason = fault(device, dtype, lambda: compare(device, dtype, channels), f"{channels} channels")
    if reason and device not in _said and dist.is_main():
        _said.add(device)
        warnings.warn(
            f"residuals and norms on {device} go without the Triton kernel, which is slower: "
            f"{reason}",
            stacklevel=2,
        )
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


def compare(device: torch.device, dtype: torch.dtype, channels: int) -> dict[str, float]:
    """The kernels' largest errors beside the formula in fp64, as fractions of the lengths."""
    from nnssl.encoder.stream import launch

    errors: dict[str, float] = {}
    chance = torch.Generator().manual_seed(0)  # of its own: a run's must not move

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(device, dtype)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    def note(ours: Callable, exact: Callable, leaves: list[Tensor], gradients: int) -> None:
        """Outputs and gradients of both, the last leaf given to `ours` once a program."""
        parts = launch.programs(leaves[0])
        into = [drawn(*leaves[0].shape) for _ in range(gradients)]
        found = []
        for function, wide in ((ours, False), (exact, True)):
            own = [(x.double() if wide else x).detach().requires_grad_() for x in leaves]
            last = own[-1] if wide else own[-1].expand(parts, *own[-1].shape[1:])
            outs = [out for out in function(*own[:-1], last) if out is not None]
            back = torch.autograd.grad(outs, own, [x.double() for x in into] if wide else into)
            found.append([*(out.detach() for out in outs), *back])
        names = ["output"] * gradients + ["gradient"] * len(leaves)
        for name, a, b in zip(names, *found, strict=True):
            error = float((a.double() - b).norm() / b.norm().clamp(min=1e-6))
            errors[name] = error if error != error else max(errors.get(name, 0.0), error)

    shape = (3, 37, channels)
    order = torch.randperm(shape[1], generator=chance).to(device)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        for adds, drops, moves, norms in CASES:
            kept, way = drawn(3, 1, 1) if drops else None, order if moves else None
            leaves = [drawn(*shape) for _ in range(1 + adds)] + [zeros(1, 3, channels)]
            norm = nn.LayerNorm(channels, device=device, dtype=dtype) if norms else None
            if norm is not None:
                norm.weight.data, norm.bias.data = drawn(channels), drawn(channels)

            def called(
                function: Callable,
                *given: Tensor,
                adds: bool = adds,
                kept: Tensor | None = kept,
                way: Tensor | None = way,
                norm: nn.LayerNorm | None = norm,
            ) -> tuple[Tensor, Tensor | None]:
                *tensors, parts = given
                x, branch = tensors if adds else (*tensors, None)
                kept = kept if kept is None else kept.to(x.dtype)
                norm = norm if norm is None else copy.deepcopy(norm).to(x.dtype)
                return function(x, branch, kept, way, norm, parts)

            ours, exact = partial(called, launch.added_norm), partial(called, formula)
            note(ours, exact, leaves, 1 + norms)
        leaves = [drawn(*shape), zeros(1, channels)]
        note(
            lambda x, parts: [launch.gelu(x, parts)],
            lambda x, parts: [F.gelu(x + parts)],
            leaves,
            1,
        )
    return errors


# adds, drops, moves, norms: all that a stage asks for
CASES = (
    (False, False, True, True),
    (True, False, False, True),
    (True, True, True, True),
    (True, True, False, True),
    (True, False, True, False),
    (True, True, True, False),
)
