"""Encoder forward and backward against MONAI's SwinTransformer built the same.

    python -m nnssl.bench.encoder [--preset smit] [--sizes 64 96] [-device cuda]
        [--allocator default]

On a GPU both run under bf16 autocast, ours compiled as it is trained. MONAI is the baseline as its
users have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

from nnssl.bench.command_line import network_arguments, set_up
from nnssl.bench.timing import comparison_table, peak_memory, side_by_side
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin


def monai_swin(config: SwinConfig) -> nn.Module:
    """MONAI's encoder of the same architecture."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    dims = config.spatial_dims
    return SwinTransformer(
        in_chans=config.in_channels,
        embed_dim=config.embed_dim,
        window_size=(config.window,) * dims,
        patch_size=(2,) * dims,
        depths=config.depths,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        drop_path_rate=config.drop_path,
        patch_norm=config.patch_norm,
        spatial_dims=dims,
    )


def training_step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward, a fixed random projection of all five maps as the loss, backward into fresh
    gradients.

    (The mean square would not do: it is constant behind a layer norm, and gradients of zero are an
    easier sum.)
    """
    with torch.no_grad():
        targets = [torch.randn_like(m, dtype=torch.float32) for m in model(x)]

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            maps = model(x)
        terms = [(m.float() * t).mean() for m, t in zip(maps, targets, strict=True)]
        torch.stack(terms).sum().backward()
        model.zero_grad(set_to_none=True)  # at the end, so that the gradients count in the peak

    return step


def _encoder_steps(config: SwinConfig, x: torch.Tensor) -> dict[str, Callable[[], None]]:
    """A training step of each encoder, MONAI's first."""
    ours, theirs = Swin(config).to(x.device).train(), monai_swin(config).to(x.device).train()
    steps = {"MONAI": training_step(theirs, x), "ours": training_step(ours, x)}
    if x.device.type == "cuda":
        steps["ours, compiled"] = training_step(cast("nn.Module", torch.compile(ours)), x)
    return steps


def comparison_lines(
    name: str, size: int, batch: int, device: torch.device, rounds: int
) -> Iterator[str]:
    """Lines to print, each as soon as it is measured."""
    config = preset(name, drop_path=0.0)
    torch.manual_seed(0)
    x = torch.randn(batch, config.in_channels, *(size,) * config.spatial_dims, device=device)
    steps = _encoder_steps(config, x)
    yield f"\n{name}, {size}^{config.spatial_dims}, batch {batch}"
    yield comparison_table(side_by_side(steps, rounds, device=device), "MONAI")
    yield from _memory_lines(steps, device)


def _memory_lines(steps: dict[str, Callable[[], None]], device: torch.device) -> Iterator[str]:
    memory = {label: peak_memory(step, device) for label, step in steps.items()}
    for label, peak in memory.items():
        ratio = peak / memory["MONAI"]
        yield f"peak memory of a step, {label}: {peak / 2**20:.0f} MiB, ratio {ratio:.2f}"


def main(argv: list[str] | None = None) -> None:
    options = network_arguments(__doc__, "crop", batch=1).parse_args(argv)
    device = set_up(options)
    for size in options.sizes:
        for line in comparison_lines(options.preset, size, options.batch, device, options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
