"""A step of every method on the same scans, side by side: time, memory, and cost relative to
SimMIM.

    python -m nnssl.bench.methods [--preset tiny] [--crop 64 64 64] [--batch-size 2] [--methods smit dino]

A step is all that training does but reading: views, losses, backward, optimiser, teachers, queues.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate

from nnssl.bench.figures import middle
from nnssl.bench.timing import arguments, peak_memory, side_by_side, table
from nnssl.data.phantoms import phantom
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.memory import keep_freed_memory
from nnssl.methods import METHODS
from nnssl.train.precision import half_precision
from nnssl.train.run import Run, RunConfig
from nnssl.types import HUPolicy, Shape

BASE = "simmim"
BODY = HUPolicy(low=-1000.0, high=1000.0, mean=0.0, sd=250.0)
SPACING = (2.0, 2.0, 2.0)


def volumes(shape: Shape, count: int) -> list[Tensor]:
    """`count` phantoms as network input, [1 *shape]; for two axes the middle slice of each."""
    full = shape if len(shape) == 3 else (16, *shape)
    scans = [torch.from_numpy(phantom(seed, full, SPACING).hu).float() for seed in range(count)]
    return [BODY.normalise(scan if len(shape) == 3 else scan[8])[None] for scan in scans]


def step_of(
    name: str, encoder: str, scans: list[Tensor], crop: Shape, device: torch.device
) -> Callable[[], None]:
    """One training step of method `name` on the middles of `scans`, through the engine's own `Run`."""
    torch.manual_seed(0)
    config = METHODS[name].Config()
    network = Swin(preset(encoder, len(crop), drop_path=config.drop_path), maskable=True)
    method = METHODS[name](network, config)
    parts = [middle(scan, method.region(crop)) for scan in scans]
    whole = {
        "start": torch.zeros(len(crop), dtype=torch.long),
        "size": torch.tensor(parts[0].shape[1:]),
    }
    batch = default_collate(
        [
            {"crop": part, "index": i, "scan": i, "rejected": 0, **whole}
            for i, part in enumerate(parts)
        ]
    )
    bf16 = half_precision(device) == torch.bfloat16
    run = Run(
        method, parts, RunConfig(10_000, len(scans), bf16=bf16), Path(), {"method": name}, device
    )

    def step() -> None:
        run.gradients([batch])
        run.update()

    return step


def main(argv: list[str] | None = None) -> None:
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--crop", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--batch-size", type=int, default=2, help="scans a step")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help=f"besides {BASE}"
    )
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    kept = keep_freed_memory()
    device, crop = torch.device(asked.device), tuple(asked.crop)
    names = [BASE, *(name for name in asked.methods if name != BASE)]
    widest = tuple(
        max(METHODS[name].region(crop)[axis] for name in names) for axis in range(len(crop))
    )
    scans = volumes(widest, asked.batch_size)
    steps = {name: step_of(name, asked.preset, scans, crop, device) for name in names}
    print(
        f"{asked.preset}, crop {'x'.join(map(str, crop))}, {asked.batch_size} scans a step, {asked.device}, "
        f"{asked.threads} threads, torch {torch.__version__}, freed memory kept: {kept}"
    )
    costs = side_by_side(steps, asked.rounds, device=device)
    memory = {name: peak_memory(step, device) for name, step in steps.items()}
    print(table(costs, BASE, memory))


if __name__ == "__main__":
    main()
