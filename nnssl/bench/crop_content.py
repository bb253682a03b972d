"""What crops and views show of real scans: body, windows of one constant, overlap of two views.

    python -m nnssl.bench.crop_content FOLDER [--crops 200] [--crop 64 48 64]
        [--regions head=okbp chest=lidc ...]

FOLDER is what nnssl_pretrain has preprocessed ($nnUNet_preprocessed/nnssl/NAME). A group is of the
scans whose case id begins with one of the words after its name. Body: voxels above air, the plan's
low clip.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nnssl.bench import markdown
from nnssl.data.crops import Crops
from nnssl.data.plan import Plan
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, Method
from nnssl.train.batches import collate, generator_for
from nnssl.types import Shape
from nnssl.views.masking import varied_blocks

SMALL = SwinConfig(embed_dim=6, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
WINDOW = 8  # voxels: a window of stage 1
AT_ONCE = 10
HEADER = (
    "scans",
    "crops",
    "body of a crop",
    "body of a view",
    "constant windows of a view",
    "overlap of two views",
)


def fractions(
    name: str, crops: Crops, crop: Shape, chosen: list[int], count: int, air: float
) -> list[float]:
    """Means over the first `count` samples that are of the scans `chosen`; overlap is NaN without
    "offset".
    """
    torch.manual_seed(0)
    method = _untrained(name)
    samples = _of_scans(crops, chosen)
    rows = []
    while len(rows) < count:
        part = list(itertools.islice(samples, min(AT_ONCE, count - len(rows))))
        rows += [torch.tensor(_measured(method, part, crop, air))] * len(part)
    return torch.stack(rows).mean(dim=0).tolist()


def _untrained(name: str) -> Method:
    """With its default settings, but without a jitter of the HU window where it has one."""
    kind = METHODS[name]
    changed = ["window_jitter=0"] if hasattr(kind.Config(), "window_jitter") else []
    return kind(Swin(SMALL, maskable=True), kind.Config.parse(changed))


def _of_scans(crops: Crops, chosen: list[int]) -> Iterator[dict]:
    """The crops of the scans `chosen`, without an end."""
    return (crops[index] for index in itertools.count() if crops._scan(index) in chosen)


def _measured(method: Method, samples: list[dict], crop: Shape, air: float) -> list[float]:
    """The numbers of one batch: body of crops and of views, constant windows, overlap."""
    batch = collate(samples)
    generators = [generator_for(0, sample["index"]) for sample in samples]
    views = method.prepare_views(
        batch["crop"].float(), generators, batch["scan"], batch["start"], batch["size"]
    )
    images = _images(views, crop)
    body = _body_fraction(batch["crop"], air)
    # without offsets the intensities of views are not the scan's
    body_of_views = _body_fraction(images, air) if "offset" in views else float("nan")
    return [body, body_of_views, _constant_windows(images), _overlap(views, crop)]


def _images(views: dict[str, Tensor], crop: Shape) -> Tensor:
    """The first channel of what the encoder sees, [n *size]."""
    image = next(views[key] for key in ("image", "global", "cubes") if key in views)
    dims = len(crop)
    return image.movedim(-dims - 1, 0)[0].reshape(-1, *image.shape[-dims:])


def _body_fraction(voxels: Tensor, air: float) -> float:
    return float((voxels > air).float().mean())


def _constant_windows(images: Tensor) -> float:
    """The fraction of the windows of [n *size] that hold one value only."""
    whole = [slice(size // WINDOW * WINDOW) for size in images.shape[1:]]
    trimmed = images[(slice(None), *whole)][:, None]
    return 1 - float(varied_blocks(trimmed, (WINDOW,) * len(whole)).float().mean())


def _overlap(views: dict[str, Tensor], crop: Shape) -> float:
    """The mean fraction of a view that is in the other view of its region as well."""
    if len(views.get("offset", ())) != 2:
        return float("nan")
    one, other = views["offset"]
    shift = (one - other).abs() / torch.tensor(crop)
    return float((1 - shift).clamp(min=0).prod(dim=1).mean())


def parse_crop_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=200, help="for each method and group")
    parser.add_argument("--crop", type=int, nargs="+", help="default: the plan's")
    parser.add_argument("--regions", nargs="+", default=["all="], metavar="NAME=WORD,WORD")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["smit", "simmim", "dino", "simclr"]
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_crop_options(argv)
    plan = Plan.load(args.folder / "plan.json")
    crop = tuple(args.crop or plan.crop)
    print(markdown.header(["method", "part", *HEADER]))
    for name in args.methods:
        crops = Crops(args.folder, plan, METHODS[name].region(crop))
        for group in args.regions:
            title, chosen = _scans_of(group, crops.cases)
            means = fractions(name, crops, crop, chosen, args.crops, plan.padding + 0.05)
            row = [f"`{name}`", title, len(chosen), args.crops, *map(_cell, means)]
            print(markdown.row(row), flush=True)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _scans_of(group: str, cases: Sequence[str]) -> tuple[str, list[int]]:
    """The name in `NAME=WORD,WORD`, and the numbers of the cases that begin with a word."""
    title, _, words = group.partition("=")
    begins = tuple(words.split(","))
    return title, [number for number, case in enumerate(cases) if case.startswith(begins)]


if __name__ == "__main__":
    main()
