"""What `nnssl_pretrain --list` shows: one row per method, with what a step of it costs in steps
of SimMIM.

python -m nnssl.bench.listing      counts the costs again and prints COSTS

Counted, not timed: floating-point operations of matrix products and convolutions, of views, losses,
teachers and the backward pass, as PyTorch's flop counter sees them. Time depends on the machine as
well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor
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
SMIT_WITH_PARCELS = 6.37  # `w_parcels=1`, which it chooses where the scans can be registered

COLUMNS = {"method": 9, "family": 22, "learns from": 33, "batch": 5, "cost": 5, "paper": 40}


def operations(kind: type[Method], *settings: str) -> int:
    """Floating-point operations of one training step; `settings` as --set takes them."""
    torch.manual_seed(0)
    method = kind(Swin(preset(PRESET), maskable=True), kind.Config.parse(settings)).train()
    regions = torch.randn(SCANS, 1, *method.region(CROP))
    with FlopCounterMode(display=False) as counter:
        _forward_backward(method, regions)
    return counter.get_total_flops()


def _forward_backward(method: Method, regions: Tensor) -> None:
    """Views, losses and the backward pass of SCANS scans."""
    generators = [torch.Generator().manual_seed(scan) for scan in range(SCANS)]
    views = method.prepare_views(regions, generators, torch.arange(SCANS))
    method(views).losses["total"].backward()


def method_table(methods: Mapping[str, type[Method]] = METHODS) -> str:
    """The methods as text; a long cell continues in the next line."""
    rows = (_wrapped_row(_method_cells(name, method)) for name, method in methods.items())
    notes = (
        "batch: scans per step that it needs at least",
        f"cost:  of a step, in steps of {UNIT}; smit has {SMIT_WITH_PARCELS:.1f} where it learns "
        "from parcels too",
    )
    return "\n".join([*_header_lines(), *rows, "", *notes])


def _header_lines() -> list[str]:
    rule = {name: "-" * width for name, width in COLUMNS.items()}
    return [_wrapped_row({name: name for name in COLUMNS}), _wrapped_row(rule)]


def _method_cells(name: str, method: type[Method]) -> dict[str, str]:
    return {
        "method": name,
        "family": method.family,
        "learns from": method.signal,
        "batch": str(method.smallest_batch),
        "cost": f"{COSTS[name]:.1f}" if name in COSTS else "?",
        "paper": method.citation,
    }


def _wrapped_row(cells: dict[str, str]) -> str:
    """The cells side by side, each wrapped to the width of its column."""
    wrapped = [textwrap.wrap(cells[name], width) for name, width in COLUMNS.items()]
    lines = zip_longest(*wrapped, fillvalue="")
    return "\n".join(map(_padded_line, lines))


def _padded_line(line: Sequence[str]) -> str:
    texts = (f"{text:{width}s}" for text, width in zip(line, COLUMNS.values(), strict=True))
    return "  ".join(texts).rstrip()


if __name__ == "__main__":
    counted = {name: operations(method) for name, method in METHODS.items()}
    print("COSTS: dict[str, float] = {")
    for name, count in counted.items():
        print(f'    "{name}": {count / counted[UNIT]:.2f},')
    print("}")
    print(f"SMIT_WITH_PARCELS = {operations(METHODS['smit'], 'w_parcels=1') / counted[UNIT]:.2f}")
