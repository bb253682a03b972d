"""The figures of the method pages, drawn by the methods themselves from a phantom.

python -m nnssl.bench.figures smit documentation/methods/smit.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnssl import files
from nnssl.data.phantoms import phantom
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.methods.smit import SMIT, SMITConfig
from nnssl.types import HUPolicy, Shape
from nnssl.views.masking import repeat_blocks

SOFT_TISSUE = HUPolicy(low=-1000, high=400, mean=0, sd=200)
SPACING = (2.0, 2.0, 2.0)
CROP = (96, 96, 96)
COLOURS = ("tab:orange", "tab:cyan")


def smit(path: Path) -> None:
    """One region, its two views, and what student and teacher see of them: one axial slice of each."""
    method = SMIT(Swin(SwinConfig(embed_dim=4, heads=(1, 1, 1, 1)), maskable=True), SMITConfig(window_jitter=0.0))
    region = middle(method.region(CROP))
    views = method.views(region[None], [torch.Generator().manual_seed(11)])
    figure, panels = canvas(2, 3)
    for row, (image, blocks) in enumerate(zip(views["image"][:, 0], views["masked"][:, 0], strict=True)):
        corner = place(region, image)
        depth = region.shape[1] // 2 - corner[0]  # both rows show the region's middle slice
        hidden = repeat_blocks(blocks[None], method.config.mask_block)[0]
        show(panels[row][0], region[0, region.shape[1] // 2], f"region, view {row + 1}")
        frame(panels[row][0], corner[1:], CROP[1:], COLOURS[row])
        show(panels[row][1], image[0, depth].masked_fill(hidden[depth], float("nan")), "student: 70 % hidden")
        show(panels[row][2], image[0, depth], "teacher: all of it")
    save(figure, path)


def middle(size: Shape) -> Tensor:
    """The middle of a phantom as network input, [1 *size]."""
    shape = tuple(s + 8 for s in size)
    hu = phantom(seed=3, shape=shape, spacing=SPACING).hu.astype(np.float32)
    part = tuple(slice((s - n) // 2, (s - n) // 2 + n) for s, n in zip(shape, size, strict=True))
    return SOFT_TISSUE.normalise(torch.from_numpy(hu[part]))[None]


def place(region: Tensor, view: Tensor) -> Shape:
    """The corner at which `view` [1 *crop] lies in `region` [1 *region]."""
    row = view[0, 0, 0]
    windows = region[0].unfold(2, row.numel(), 1)[: region.shape[1] - view.shape[1] + 1]
    for corner in (windows == row).all(dim=3).nonzero().tolist():
        part = region[(0, *(slice(c, c + n) for c, n in zip(corner, view.shape[1:], strict=True)))]
        if torch.equal(part, view[0]):
            return tuple(corner)
    raise ValueError(f"the view {tuple(view.shape)} is no part of the region {tuple(region.shape)}")


def canvas(rows: int, columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * columns, 2.25 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(axes, image: Tensor, title: str) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=-1.5, vmax=1.5)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("tab:blue")  # what is hidden


def frame(axes, corner: Shape, size: Shape, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((corner[1], corner[0]), size[1], size[0], fill=False, edgecolor=colour, linewidth=2))


def save(figure, path: Path) -> None:
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=72, format="png")


FIGURES = {"smit": smit}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nnssl.bench.figures", description=__doc__)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    FIGURES[asked.figure](asked.path)
