"""What crops and views show of real scans: body, windows of one constant, overlap of two views.

    python -m nnssl.bench.crops FOLDER [--crops 200] [--crop 64 48 64]
        [--regions head=okbp chest=lidc ...]

FOLDER is what nnssl_pretrain has preprocessed ($nnUNet_preprocessed/nnssl/NAME). A group is of the
scans whose case id begins with one of the words after its name. Body: voxels above air, the plan's
low clip.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from nnssl.data.crops import Crops
from nnssl.data.plan import Plan
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.methods import METHODS
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
    known = METHODS[name].Config.parse(
        ["window_jitter=0"] if hasattr(METHODS[name].Config(), "window_jitter") else []
    )
    method = METHODS[name](Swin(SMALL, maskable=True), known)
    rows, index = [], 0
    while len(rows) < count:
        samples = []
        while len(samples) < min(AT_ONCE, count - len(rows)):
            if crops._scan(index) in chosen:
                samples.append(crops[index])
            index += 1
        batch = collate(samples)
        generators = [generator_for(0, sample["index"]) for sample in samples]
        views = method.prepare_views(
            batch["crop"].float(), generators, batch["scan"], batch["start"], batch["size"]
        )
        image = next(views[key] for key in ("image", "global", "cubes") if key in views)
        images = image.movedim(-len(crop) - 1, 0)[0].reshape(-1, *image.shape[-len(crop) :])
        inner = [size // WINDOW * WINDOW for size in images.shape[1:]]
        cut = images[(slice(None), *(slice(size) for size in inner))][:, None]
        flat = 1 - float(varied_blocks(cut, (WINDOW,) * len(inner)).float().mean())
        body, seen = (float((part > air).float().mean()) for part in (batch["crop"], images))
        if "offset" not in views:  # their intensities are not the scan's
            seen = float("nan")
        rows += [torch.tensor([body, seen, flat, _overlap(views, crop)])] * len(samples)
    return torch.stack(rows).mean(dim=0).tolist()


def _overlap(views: dict[str, Tensor], crop: Shape) -> float:
    """The mean fraction of a view that is in the other view of its region as well."""
    if len(views.get("offset", ())) != 2:
        return float("nan")
    apart = (views["offset"][0] - views["offset"][1]).abs() / torch.tensor(crop)
    return float((1 - apart).clamp(min=0).prod(dim=1).mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=200, help="for each method and group")
    parser.add_argument("--crop", type=int, nargs="+", help="default: the plan's")
    parser.add_argument("--regions", nargs="+", default=["all="], metavar="NAME=WORD,WORD")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["smit", "simmim", "dino", "simclr"]
    )
    args = parser.parse_args(argv)
    plan = Plan.load(args.folder / "plan.json")
    crop = tuple(args.crop or plan.crop)
    print("| method | part | " + " | ".join(HEADER) + " |\n|" + "---|" * (2 + len(HEADER)))
    for name in args.methods:
        crops = Crops(args.folder, plan, METHODS[name].region(crop))
        for group in args.regions:
            title, _, words = group.partition("=")
            chosen = [
                n for n, case in enumerate(crops.cases) if case.startswith(tuple(words.split(",")))
            ]
            row = fractions(name, crops, crop, chosen, args.crops, plan.padding + 0.05)
            cells = " | ".join("" if value != value else f"{value:.2f}" for value in row)
            print(f"| `{name}` | {title} | {len(chosen)} | {args.crops} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
