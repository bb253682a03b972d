"""Learning rate and parameter groups of a run."""

from __future__ import annotations

from torch import nn

from nnssl.methods.method import MethodConfig
from nnssl.modules.schedules import cosine


def learning_rate(config: MethodConfig, step: int, steps: int, batch_size: int) -> float:
    """The rate of step `step` (0-based): linear warm-up, then half a cosine to `lr_floor`.

    The peak grows with the square root of the batch size (Krizhevsky 2014), as 3DINO does, up to
    `lr_most`, which no larger batch exceeds unless `lr` itself does.
    """
    peak, warmup = _peak(config, batch_size), round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, config.lr_floor, (step - warmup) / max(1, steps - warmup))


def _peak(config: MethodConfig, batch_size: int) -> float:
    peak = config.lr * (batch_size / config.lr_batch) ** 0.5
    return min(peak, max(config.lr, config.lr_most)) if batch_size > config.lr_batch else peak


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels decay; norms, biases, bias tables and mask token do not."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if not _is_exempt(name, p)]
    plain = [p for name, p in trained if _is_exempt(name, p)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _is_exempt(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter does not decay."""
    return parameter.ndim < 2 or name.endswith(("relative_position_bias_table", "mask_token"))
