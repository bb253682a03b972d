"""The figures of the method pages: what a method looks at in a phantom, drawn through the method's
own views.

python -m nnssl.bench.figures smit documentation/methods/smit.png
    [--checkpoint checkpoint_latest.pth]

One row per view, one column for each title of `Method.show`; what is hidden is blue. Where a view
is an exact part of the region that was read, the region is shown as well, with the view's frame.
Without a checkpoint the weights are random: views do not depend on them, and predictions are left
out.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nnssl import checkpoint, files
from nnssl.bench.panels import MOST_ROWS, Frame, PanelRow, picture
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.hu import HUPolicy
from nnssl.methods import METHODS, Method
from nnssl.phantoms import phantom
from nnssl.types import Shape, Spacing
from nnssl.views.intensity import Ranges
from nnssl.views.spatial import cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFT_TISSUE = HUPolicy(low=-1000, high=400, mean=0, std=200)
SMALL = SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
SEED = 5  # with which SMIT draws no HU window, so that its views are found in their region
GREYS = (-300.0, 300.0)  # HU
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
    """The method as `path`, a checkpoint_latest.pth, holds it.

    Raises ValueError where it is of another method, or a final one, which holds no heads.
    """
    content = checkpoint.read(path)
    header, plan = content["header"], content["header"]["plan"]
    if header["method"] != name or "training_state" not in content:
        raise _unsuitable(name, path, content)
    hu = HUPolicy.from_dict(plan["hu"])
    method = _untrained(header)
    method.load_state_dict(content["training_state"]["method"])
    method.ranges = Ranges.of(hu)
    return Subject(method, tuple(header["crop"]), tuple(plan["spacing"]), hu, trained=True)


def _unsuitable(name: str, path: Path, content: dict) -> ValueError:
    return ValueError(
        f"a checkpoint_latest.pth of {name} is needed (the final one holds no heads); {path} is of "
        f"{content['header']['method']}, with {sorted(content)}"
    )


def _untrained(header: dict) -> Method:
    """The method of a checkpoint, without its weights."""
    kind = METHODS[header["method"]]
    encoder = Swin(SwinConfig.from_dict(header["encoder"]), maskable=True)
    return kind(encoder, kind.Config.stored(header["method_config"]))


def draw_views(subject: Subject, path: Path) -> None:
    """What the method shows of one region; one row per view."""
    method = subject.method.eval()
    size = method.region(subject.crop)
    region = phantom_input(size, subject)
    rows = _panel_rows(_shown_volumes(subject, region), region)
    if size != subject.crop and any(row.frame for row in rows):
        _put_region_first(rows, region[0])
    else:
        rows = [replace(row, frame=None) for row in rows]
    save(picture(rows, _greys(subject.hu)), path)


def _put_region_first(rows: list[PanelRow], region: Tensor) -> None:
    """Its middle slice, into the first row; a gap into the others."""
    middle_slice = region[region.shape[0] // 2] if region.ndim == 3 else region
    first, *others = rows
    first.panels.insert(0, ("region", middle_slice))
    for row in others:
        row.panels.insert(0, None)


def _shown_volumes(subject: Subject, region: Tensor) -> dict[str, Tensor]:
    """Title to volumes [n 1 *size], of what the weights say only where they are trained."""
    shown = _all_shown(subject.method, region, SEED)
    return {
        title: volumes[:MOST_ROWS]
        for title, volumes in shown.items()
        if subject.trained or not title.startswith(PREDICTED)
    }


def _all_shown(method: Method, region: Tensor, seed: int) -> dict[str, Tensor]:
    generators = [torch.Generator().manual_seed(seed)]
    scans = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        return method.show(method.prepare_views(region[None], generators, scans))


def _panel_rows(shown: dict[str, Tensor], region: Tensor) -> list[PanelRow]:
    most = max(map(len, shown.values()))
    return [_panel_row(shown, number, region) for number in range(most)]


def _panel_row(shown: dict[str, Tensor], number: int, region: Tensor) -> PanelRow:
    """Of view `number`, as far as each title has so many."""
    volumes = {title: own[number, 0] for title, own in shown.items() if number < len(own)}
    frame = find_frame(region, list(volumes.values()))
    panels = [(title, slice_of(volume, region, frame)) for title, volume in volumes.items()]
    return PanelRow([*panels], frame)


def _greys(hu: HUPolicy) -> tuple[float, float]:
    """GREYS as network input."""
    low, high = (float(hu.normalise(np.float32(value))) for value in GREYS)
    return low, high


def phantom_input(size: Shape, subject: Subject) -> Tensor:
    """The middle of a phantom as network input, [1 *size]."""
    box = (1,) * (3 - len(size)) + tuple(size)
    shape = tuple(s + 8 for s in box)
    hu = phantom(seed=3, shape=shape, spacing=subject.spacing).hu.astype(np.float32)
    return subject.hu.normalise(middle(torch.from_numpy(hu)[None], box)).reshape(1, *size)


def middle(volume: Tensor, size: Shape) -> Tensor:
    """The middle of `volume` [C *larger], [C *size]."""
    corner = tuple((s - n) // 2 for s, n in zip(volume.shape[1:], size, strict=True))
    return cut(volume, corner, size)


def find_frame(region: Tensor, images: list[Tensor]) -> Frame | None:
    """That of the first of `images` [*size] which is an exact part of `region` [1 *region]."""
    frames = (_exact_part(region[0], image) for image in images)
    return next((frame for frame in frames if frame is not None), None)


def _exact_part(whole: Tensor, image: Tensor) -> Frame | None:
    """Where `image` [*size] lies in `whole` [*larger]; None where it is no part of it."""
    size = tuple(image.shape)
    fits = all(n <= s for n, s in zip(size, whole.shape, strict=True))
    if not fits or image.isnan().any():
        return None
    corners = map(tuple, _candidates(whole, image))
    found = (at for at in corners if torch.equal(cut(whole[None], at, size)[0], image))
    return next(((corner, size) for corner in found), None)


def _candidates(whole: Tensor, image: Tensor) -> list[list[int]]:
    """The corners in `whole` at which the first row of `image` lies."""
    first = image[(0,) * (image.ndim - 1)]
    counts = (s - n + 1 for s, n in zip(whole.shape, image.shape, strict=True))
    *others, _ = counts
    rows = whole[tuple(slice(start) for start in others)]
    return (rows.unfold(-1, len(first), 1) == first).all(dim=-1).nonzero().tolist()


def slice_of(volume: Tensor, region: Tensor, frame: Frame | None) -> Tensor:
    """The axial slice that is the region's middle one, where the frame is known; otherwise the
    volume's own middle.
    """
    if volume.ndim == 2:
        return volume
    own_middle = len(volume) // 2
    if frame is None or frame[1] != tuple(volume.shape):
        return volume[own_middle]
    wanted = region.shape[1] // 2 - frame[0][0]
    return volume[wanted if 0 <= wanted < len(volume) else own_middle]


def save(figure: Figure, path: Path) -> None:
    """In 64 colours, and as sharp as MOST_BYTES allow."""
    for dpi in (100, 84, 72, 60, 48):
        content = _packed(figure, dpi)
        if len(content) <= MOST_BYTES:
            break
    with files.atomic(path) as temporary:
        temporary.write_bytes(content)


def _packed(figure: Figure, dpi: int) -> bytes:
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    image = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    image.save(packed, "png", optimize=True)
    return packed.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nnssl.bench.figures", description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--checkpoint", type=Path, help="a checkpoint_latest.pth: its weights, crop and HU policy"
    )
    args = parser.parse_args(argv)
    given = args.checkpoint
    draw_views(trained(args.method, given) if given else untrained(args.method), args.path)


if __name__ == "__main__":
    main()
