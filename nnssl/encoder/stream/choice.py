"""Whether the Triton kernels of the residual stream serve: they are tried on a small input, once.

They were proven without a GPU. So the first time a process needs them for a width, they are
compared with the formula in fp64 on the GPU at hand; where they differ or cannot run, PyTorch's own
operations are taken and one line says so.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl import dist
from nnssl.encoder.attention.choice import TOLERANCES

MOST_CHANNELS = 4096
_said: set[torch.device] = set()


def kernel_serves(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """False, after a warning, where it should and does not."""
    if device.type != "cuda" or dtype not in TOLERANCES or channels > MOST_CHANNELS:
        return False
    return _tried(device, dtype, channels)


@lru_cache(maxsize=64)
def _tried(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    reason = _fault(device, dtype, channels)
    if reason and device not in _said and dist.is_main():
        _said.add(device)
        warnings.warn(
            f"residuals and norms on {device} go without the Triton kernel, which is slower: "
            f"{reason}",
            stacklevel=2,
        )
    return not reason


def _fault(device: torch.device, dtype: torch.dtype, channels: int) -> str:
    """Why the kernels do not serve; nothing where they do."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (A100, RTX 30) or later"
    try:
        errors = compare(device, dtype, channels)
    except Exception as error:  # whatever a compiler or driver may say
        return f"it cannot run ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    name, worst = max(
        errors.items(), key=lambda item: float("inf") if item[1] != item[1] else item[1]
    )
    if not worst <= TOLERANCES[dtype]:
        return f"its {name} is wrong by {worst:.1e} for {dtype}, {channels} channels; please report this"
    return ""


def formula(
    x: Tensor,
    branch: Tensor | None,
    kept: Tensor | None,
    order: Tensor | None,
    parameters: Tensor,
    norms: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `launch.added_norm` computes; `parameters` [1 3 C]."""
    scale, offset, bias = parameters[0]
    if branch is not None:
        branch = branch + (bias - bias.detach())  # it is in the branch already
        x = x + (branch if kept is None else branch * kept)
    x = x if order is None else x[:, order]
    return x, F.layer_norm(x, x.shape[-1:], scale, offset) if norms else None


def compare(device: torch.device, dtype: torch.dtype, channels: int) -> dict[str, float]:
    """The kernels' largest errors beside the formula in fp64, as fractions of the lengths."""
    from nnssl.encoder.stream import launch

    errors: dict[str, float] = {}
    chance = torch.Generator().manual_seed(0)  # of its own: a run's must not move

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(device, dtype)

    samples, tokens = 3, 37
    order = torch.randperm(tokens, generator=chance).to(device)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        for adds, drops, moves, norms in CASES:
            x, branch = drawn(samples, tokens, channels), drawn(samples, tokens, channels)
            kept = drawn(samples, 1, 1) if drops else None
            parameters = drawn(1, 3, channels).float()
            gradients = [drawn(samples, tokens, channels) for _ in range(2 if norms else 1)]
            way = order if moves else None
            parts = launch.programs(x)
            found = []
            for function, exact in ((launch.added_norm, False), (formula, True)):
                tensors = [t.double() if exact else t for t in (x, branch, parameters)]
                leaves = [t.detach().requires_grad_() for t in tensors]
                given = leaves[2] if exact else leaves[2].expand(parts, -1, -1)
                outs = function(
                    leaves[0],
                    leaves[1] if adds else None,
                    kept.double() if exact and drops else kept,
                    way,
                    given,
                    norms,
                )
                outs = [out for out in outs if out is not None]
                asked = leaves if adds else [leaves[0], leaves[2]]
                into = [g.double() if exact else g for g in gradients]
                back = torch.autograd.grad(outs, asked, into)
                found.append([*(out.detach() for out in outs), *back])
            names = ["sum", "norm"][: len(gradients)] + ["gradient"] * adds
            names += ["gradient", "parameters' gradient"]
            for name, a, b in zip(names, *found, strict=True):
                error = float((a.double() - b).norm() / b.norm().clamp(min=1e-6))
                errors[name] = error if error != error else max(errors.get(name, 0.0), error)
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
