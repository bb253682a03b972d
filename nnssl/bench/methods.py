"""A step of every method on the same scans, side by side: time, memory, and cost relative to
SimMIM.

    python -m nnssl.bench.methods [--preset tiny] [--crop 64 64 64] [--batch-size 2]
                                  [--methods smit dino simmim:visible_only=true,mask_ratio=0.75]

A step is all that training does but reading: views, losses, backward, optimiser, teachers, queues.
Settings follow a method's name after a colon.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from nnssl.bench import steps
from nnssl.bench.figures import middle
from nnssl.bench.timing import arguments, comparison_table, peak_memory, side_by_side
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.host_memory import keep_freed_memory
from nnssl.hu import HUPolicy
from nnssl.methods import METHODS, Method, MethodConfig
from nnssl.phantoms import phantom
from nnssl.types import Shape

BASE = "simmim"
BODY = HUPolicy(low=-1000.0, high=1000.0, mean=0.0, std=250.0)
SPACING = (2.0, 2.0, 2.0)


def volumes(shape: Shape, count: int) -> list[Tensor]:
    """`count` phantoms as network input, [1 *shape]; for two axes the middle slice of each."""
    return [_volume(shape, seed) for seed in range(count)]


def _volume(shape: Shape, seed: int) -> Tensor:
    full = shape if len(shape) == 3 else (16, *shape)
    scan = torch.from_numpy(phantom(seed, full, SPACING).hu).float()
    return BODY.normalise(scan if len(shape) == 3 else scan[8])[None]


def parse_variant(variant: str) -> tuple[type[Method], MethodConfig]:
    """Method and config of "smit", or of "smit:teacher_views=1,w_mpd=0".

    Raises ArgumentTypeError for an unknown method or setting.
    """
    name, _, settings = variant.partition(":")
    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    try:
        return METHODS[name], METHODS[name].Config.parse(settings.split(",") if settings else [])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def step_of(
    variant: str, encoder: str, scans: list[Tensor], crop: Shape, device: torch.device
) -> Callable[[], object]:
    """One training step of a `parse_variant` method on the middles of `scans`."""
    torch.manual_seed(0)
    method = _variant_method(variant, encoder, len(crop))
    region = method.region(crop)
    samples = [steps.sample(middle(scan, region), number) for number, scan in enumerate(scans)]
    return steps.step_of(method, variant, samples, device)


def _variant_method(variant: str, encoder: str, dims: int) -> Method:
    kind, config = parse_variant(variant)
    network = Swin(preset(encoder, dims, drop_path=config.drop_path), maskable=True)
    return kind(network, config)


def parse_comparison_options(argv: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--crop", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--batch-size", type=int, default=2, help="scans per step")
    add_methods(parser, list(METHODS), f"besides {BASE}: {', '.join(METHODS)}")
    return parser.parse_args(argv)


def add_methods(
    parser: argparse.ArgumentParser, default: list[str], text: str | None = None
) -> None:
    """The option --methods; each of its values is one that `parse_variant` knows."""
    parser.add_argument(
        "--methods",
        nargs="+",
        type=lambda variant: parse_variant(variant) and variant,
        default=default,
        metavar="NAME[:FIELD=VALUE,...]",
        help=text,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_comparison_options(argv)
    torch.set_num_threads(args.threads)
    kept = keep_freed_memory()
    device, calls = torch.device(args.device), _calls(args)
    print(
        f"{args.preset}, crop {'x'.join(map(str, args.crop))}, {args.batch_size} scans per step, "
        f"{args.device}, {args.threads} threads, torch {torch.__version__}, freed memory kept: "
        f"{kept}"
    )
    costs = side_by_side(calls, args.rounds, device=device)
    memory = {name: peak_memory(step, device) for name, step in calls.items()}
    print(comparison_table(costs, BASE, memory))


def _calls(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """A step of BASE and of each method that is asked for, on the same scans."""
    device, crop = torch.device(args.device), tuple(args.crop)
    names = list(dict.fromkeys([BASE, *args.methods]))
    scans = volumes(_largest_region(names, crop), args.batch_size)
    return {name: step_of(name, args.preset, scans, crop, device) for name in names}


def _largest_region(variants: list[str], crop: Shape) -> Shape:
    """That the regions of all methods fit into, in voxels."""
    regions = [parse_variant(variant)[0].region(crop) for variant in variants]
    return tuple(max(sides) for sides in zip(*regions, strict=True))


if __name__ == "__main__":
    main()
