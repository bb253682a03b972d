"""What `nnssl_pretrain --list` shows: one row per method, with what a step of it costs beside one
of SimMIM.

python -m nnssl.bench.listing      counts the costs again and prints COSTS

Counted, not timed: floating-point operations of matrix products and convolutions, of views, losses,
teachers and the backward pass, as PyTorch's flop counter sees them. Time depends on the machine as
well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, Method

PRESET, CROP, SCANS = "tiny", (64, 64, 64), 2
UNIT = "simmim"

# Operations of a step over those of a step of SimMIM, same preset, crop and batch. A test counts
# them again.
COSTS: dict[str, float] = {
    "smit": 3.15,
    "simmim": 1.00,
    "dino": 2.87,
    "ibot": 2.59,
    "simclr": 1.78,
    "mocov3": 2.33,
    "cpc": 1.30,
    "swinunetr": 2.80,
    "rotation": 0.89,
    "byol": 2.33,
    "parcels": 3.22,
}

COLUMNS = {"method": 9, "family": 22, "learns from": 33, "batch": 5, "cost": 5, "paper": 40}


def operations(method: type[Method]) -> int:
    """Floating-point operations of one training step with the default settings."""
    torch.manual_seed(0)
    made = method(Swin(preset(PRESET), maskable=True), method.Config()).train()
    regions = torch.randn(SCANS, 1, *made.region(CROP))
    generators = [torch.Generator().manual_seed(scan) for scan in range(SCANS)]
    with FlopCounterMode(display=False) as counter:
        made(made.prepare_views(regions, generators, torch.arange(SCANS))).losses[
            "total"
        ].backward()
    return counter.get_total_flops()


def table(methods: Mapping[str, type[Method]] = METHODS) -> str:
    """The methods as text; a long cell continues in the next line."""
    lines = [
        _row({name: name for name in COLUMNS}),
        _row({name: "-" * width for name, width in COLUMNS.items()}),
    ]
    for name, method in methods.items():
        cost = f"{COSTS[name]:.1f}" if name in COSTS else "?"
        cells = (
            name,
            method.family,
            method.signal,
            str(method.smallest_batch),
            cost,
            method.citation,
        )
        lines.append(_row(dict(zip(COLUMNS, cells, strict=True))))
    return "\n".join(
        [
            *lines,
            f"\nbatch: scans per step that it needs at least\ncost:  of a step, in steps of {UNIT}",
        ]
    )


def _row(cells: dict[str, str]) -> str:
    wrapped = [textwrap.wrap(cells[name], width) or [""] for name, width in COLUMNS.items()]
    height = max(map(len, wrapped))
    padded = [lines + [""] * (height - len(lines)) for lines in wrapped]
    widths = COLUMNS.values()
    return "\n".join(
        "  ".join(f"{text:{w}s}" for text, w in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    )


if __name__ == "__main__":
    counted = {name: operations(method) for name, method in METHODS.items()}
    print("COSTS: dict[str, float] = {")
    for name, count in counted.items():
        print(f'    "{name}": {count / counted[UNIT]:.2f},')
    print("}")
