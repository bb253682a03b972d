"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse

import torch

from nnssl.bench.timing import arguments
from nnssl.host_memory import keep_freed_memory


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Whose help shows the lines of `description` as they are."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def network_arguments(description: str | None, what: str, batch: int) -> argparse.ArgumentParser:
    """The parser of a benchmark of whole networks: with --preset, --sizes, --batch, --allocator.

    what: crop or patch.
    """
    parser = arguments(description)
    parser.add_argument("--preset", default="smit")
    edges = f"edge of the {what} in voxels"
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help=edges)
    parser.add_argument("--batch", type=int, default=batch)
    _add_allocator(parser)
    return parser


def _add_allocator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="nnssl.host_memory, or glibc's own",
    )


def set_up(options: argparse.Namespace) -> torch.device:
    """Threads and allocator as chosen, which is printed; the device."""
    torch.set_num_threads(options.threads)
    kept = options.allocator == "keep" and keep_freed_memory()
    print(
        f"{options.device}, {options.threads} threads, torch {torch.__version__}, freed memory "
        f"kept: {kept}"
    )
    return torch.device(options.device)
