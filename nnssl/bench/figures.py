"""The figures of the method pages: what a method looks at in a phantom, drawn through the method's
own views.

python -m nnssl.bench.figures smit documentation/methods/smit.png
    [--checkpoint checkpoint_latest.pth]

One row per view, one column for each title of `Method.show`; what is hidden is blue. Where a view
is an exact part of the region that was read, the region is shown as well, with the view's frame.
Without a checkpoint the weights are
random: views do not depend on them, and predictions are left out.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nnssl import checkpoint, files
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.methods import METHODS, Method
from nnssl.phantoms import phantom
from nnssl.types import HUPolicy, Shape, Spacing
from nnssl.views.intensity import Ranges
from nnssl.views.spatial import cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFT_TISSUE = HUPolicy(low=-1000, high=400, mean=0, std=200)
SMALL = SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
SEED = 5  # with which SMIT draws no HU window, so that its views are found in their region
GREYS = (-300.0, 300.0)  # HU
COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:red")
MOST_ROWS, MOST_COLUMNS = len(COLOURS), 4
MOST_BYTES = 120_000
PREDICTED = "predicted"  # how the titles of what the weights say begin


@dataclass(frozen=True)
class Subject:
    """A method, and what it is shown: crop in voxels, spacing in mm."""

    method: Method
    crop: Shape
    spacing: Spacing
    hu: HUPolicy
    trained: bool


def untrained(name: str) -> Subject:
    """A small encoder with random weights, on crops of 96 voxels at 2 mm (those of SMIT's
    authors).
    """
    torch.manual_seed(0)
    method = METHODS[name](Swin(SMALL, maskable=True), METHODS[name].Config())
    return Subject(method, (96, 96, 96), (2.0, 2.0, 2.0), SOFT_TISSUE, trained=False)


def trained(name: str, path: Path) -> Subject:
    """The method as `path`, a checkpoint_latest.pth, holds it. ValueError when it is another
    method's, or final.
    """
    content = checkpoint.read(path)
    header = content["header"]
    if header["method"] != name or "training_state" not in content:
        raise ValueError(
            f"a checkpoint_latest.pth of {name} is needed (the final one holds no heads); {path} "
            f"is of {header['method']}, with {sorted(content)}"
        )
    encoder = Swin(SwinConfig.from_dict(header["encoder"]), maskable=True)
    method = METHODS[name](encoder, METHODS[name].Config.stored(header["method_config"]))
    method.load_state_dict(content["training_state"]["method"])
    plan = header["plan"]
    hu = HUPolicy.from_dict(plan["hu"])
    method.ranges = Ranges.of(hu)
    return Subject(method, tuple(header["crop"]), tuple(plan["spacing"]), hu, trained=True)


def draw(subject: Subject, path: Path, seed: int = SEED) -> None:
    """What the method shows of one region; one row per view."""
    method = subject.method.eval()
    region = read(method.region(subject.crop), subject)
    with torch.no_grad():
        generators = [torch.Generator().manual_seed(seed)]
        shown = method.show(
            method.prepare_views(region[None], generators, torch.zeros(1, dtype=torch.long))
        )
    shown = {
        title: v[:MOST_ROWS]
        for title, v in shown.items()
        if subject.trained or not title.startswith(PREDICTED)
    }
    rows = max(len(volumes) for volumes in shown.values())
    places = [
        find(region, [v[row, 0] for v in shown.values() if row < len(v)]) for row in range(rows)
    ]
    panels: list[list[tuple[str, Tensor] | None]] = [
        [
            (title, slice_of(v[row, 0], region, places[row]))
            for title, v in shown.items()
            if row < len(v)
        ]
        for row in range(rows)
    ]
    framed = [place for place in places if place is not None]
    if framed and method.region(subject.crop) != subject.crop:
        panels[0].insert(
            0, ("region", region[0, region.shape[1] // 2] if region.ndim == 4 else region[0])
        )
        for row in panels[1:]:
            row.insert(0, None)
    else:
        places = [None] * rows
    low, high = (subject.hu.normalise(np.float32(hu)) for hu in GREYS)
    save(picture(panels, places, (float(low), float(high))), path)


def read(size: Shape, subject: Subject) -> Tensor:
    """The middle of a phantom as network input, [1 *size]."""
    box = (1,) * (3 - len(size)) + tuple(size)
    shape = tuple(s + 8 for s in box)
    hu = phantom(seed=3, shape=shape, spacing=subject.spacing).hu.astype(np.float32)
    return subject.hu.normalise(middle(torch.from_numpy(hu)[None], box)).reshape(1, *size)


def middle(volume: Tensor, size: Shape) -> Tensor:
    """The middle of `volume` [C *larger], [C *size]."""
    return cut(
        volume, tuple((s - n) // 2 for s, n in zip(volume.shape[1:], size, strict=True)), size
    )


def find(region: Tensor, images: list[Tensor]) -> tuple[Shape, Shape] | None:
    """Corner and size of the first of `images` [*size] that is an exact part of `region` [1
    *region].
    """
    for image in images:
        if image.isnan().any() or any(
            n > s for n, s in zip(image.shape, region.shape[1:], strict=True)
        ):
            continue
        row = image[(0,) * (image.ndim - 1)]
        rows = region[0][
            tuple(
                slice(s - n + 1) for n, s in zip(image.shape[:-1], region.shape[1:], strict=False)
            )
        ]
        for corner in (rows.unfold(-1, len(row), 1) == row).all(dim=-1).nonzero().tolist():
            part = region[(0, *(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True)))]
            if torch.equal(part, image):
                return tuple(corner), tuple(image.shape)
    return None


def slice_of(volume: Tensor, region: Tensor, place: tuple[Shape, Shape] | None) -> Tensor:
    """The axial slice that is the region's middle one, where the place is known; otherwise the
    volume's own middle.
    """
    if volume.ndim == 2:
        return volume
    depth = volume.shape[0] // 2
    if place is not None and place[1] == tuple(volume.shape):
        wanted = region.shape[1] // 2 - place[0][0]
        depth = wanted if 0 <= wanted < volume.shape[0] else depth
    return volume[depth]


def picture(panels: list[list], places: list, greys: tuple[float, float]) -> Figure:
    """One row of panels (title, image) a view; a single long row is wrapped. None leaves a gap."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    lines = panels
    if len(panels) == 1:
        lines = [panels[0][i : i + MOST_COLUMNS] for i in range(0, len(panels[0]), MOST_COLUMNS)]
    columns = max(map(len, lines))
    figure = Figure(figsize=(2.1 * columns, 2.25 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for number, line in enumerate(lines):
        for axes, panel in zip(grid[number], line, strict=False):
            if panel is None:
                continue
            axes.imshow(panel[1].float().numpy(), cmap="gray", vmin=greys[0], vmax=greys[1])
            axes.set_title(panel[0], fontsize=9)
            axes.set(frame_on=True, facecolor="tab:blue")
            if panel[0] != "region" and len(panels) > 1 and places[number] is not None:
                for spine in axes.spines.values():
                    spine.set(color=COLOURS[number], linewidth=3)
    for place, colour in zip(places, COLOURS, strict=False):
        if place is not None:
            (y, x), (height, width) = place[0][-2:], place[1][-2:]
            grid[0, 0].add_patch(
                Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2)
            )
    return figure


def save(figure: Figure, path: Path) -> None:
    """In 64 colours, and as sharp as MOST_BYTES allow."""
    from PIL import Image

    for dpi in (100, 84, 72, 60, 48):
        drawn, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=dpi, format="png")
        Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
            packed, "png", optimize=True
        )
        if packed.tell() <= MOST_BYTES:
            break
    with files.atomic(path) as temporary:
        temporary.write_bytes(packed.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nnssl.bench.figures", description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--checkpoint", type=Path, help="a checkpoint_latest.pth: its weights, crop and HU policy"
    )
    args = parser.parse_args()
    draw(
        trained(args.method, args.checkpoint) if args.checkpoint else untrained(args.method),
        args.path,
    )
