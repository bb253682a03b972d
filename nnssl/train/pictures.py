"""progress.png, views.png and views/: a run at a glance. Matplotlib is imported only when a picture
is drawn.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nnssl import files
from nnssl.train.header_metrics import TIMINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panel title -> the rows' keys (or their beginnings) that it shows. What no panel names is a loss
# term.
PANELS = {
    "accuracy (alarm: 0.99)": ("accuracy",),
    "embedding std (1: spread out, 0: all alike)": ("embedding_std",),
    "RankMe of the last 512 embeddings": ("rankme",),
    "probe: Dice of held-out labels, linear and small decoder": ("probe_",),
    "teacher: entropy / log K (alarm: 0.98), spread (alarm: 0.02)": ("entropy_", "spread_"),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
UNSHOWN = (
    "step",
    "epoch",
    "alarm",
    *TIMINGS,
    "rejected",
    "used_",
)
SMOOTHING = 0.8  # of the moving average drawn over the raw values
EXACT = ("lr", "rankme", "embedding_std", "probe_")  # no noise to smooth
MOST_NAMED = 12  # lines of a panel that get a legend
SHOWN_CROPS = 2
VIEWS = "views"  # folder of the pictures of earlier steps
KEPT = 8  # of them


def panels(rows: list[dict], title: str) -> dict[str, list[str]]:
    """Panel title -> the keys of `rows` that it shows: the losses of `title`, then the monitors."""
    known = (*chain.from_iterable(PANELS.values()), *UNSHOWN)
    there = list(dict.fromkeys(chain.from_iterable(rows)))
    shown = {f"{title}: loss": [key for key in there if not key.startswith(known)]}
    for name, keys in PANELS.items():
        shown[name] = [key for key in there if key.startswith(keys)]
    # a method without a teacher has no entropies
    return {name: keys for name, keys in shown.items() if keys}


def draw_panel(
    axes: Axes, rows: list[dict], keys: list[str], title: str, most: int | None = None
) -> None:
    """One panel: raw values pale, their moving average strong; at most `most` points per line."""
    for key in keys:
        _curve(axes, rows, key, most)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    if len(keys) <= MOST_NAMED:
        axes.legend(fontsize=8)


def _curve(axes: Axes, rows: list[dict], key: str, most: int | None) -> None:
    steps, values = zip(*((row["step"], row[key]) for row in rows if key in row), strict=True)
    smooth = values if key.startswith(EXACT) else _smooth(values)
    thin = slice(None, None, -(-len(steps) // most) if most else 1)
    (line,) = axes.plot(steps[thin], values[thin], alpha=0.25)
    axes.plot(steps[thin], smooth[thin], color=line.get_color(), label=key)


def progress(rows: list[dict], path: Path, title: str) -> None:
    """One panel for the losses, one for each group of monitors."""
    if not rows:
        return
    shown = panels(rows, title)
    columns = -(-len(shown) // 2)
    figure = _figure(4 * columns, 7)
    for number, (name, keys) in enumerate(shown.items(), start=1):
        draw_panel(figure.add_subplot(2, columns, number), rows, keys, name)
    _save(figure, path)


def keep(path: Path, step: int) -> None:
    """Copy views.png at `path` to `views/<step>.png`; of many copies KEPT stay, spread evenly."""
    folder = path.parent / VIEWS
    with files.atomic(folder / f"{step:09d}.png") as temporary:
        temporary.write_bytes(path.read_bytes())
    kept = sorted(folder.glob("[0-9]*.png"))
    while len(kept) > KEPT:
        kept.pop(_closest([int(picture.stem) for picture in kept])).unlink()


def _closest(steps: list[int]) -> int:
    """The index of the step whose neighbours are nearest to each other; neither first nor last."""
    gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
    return 1 + gaps.index(min(gaps))


def views(volumes: dict[str, Tensor], path: Path) -> None:
    """The middle axial slice of the first crops: one row per crop, one column per volume
    ([B 1 *size]); NaN is blue.
    """
    first = next(iter(volumes.values()))
    crops = min(SHOWN_CROPS, len(first))
    figure = _figure(3 * len(volumes), 3 * crops)
    grid = figure.subplots(crops, len(volumes), squeeze=False)
    for axes, name in zip(grid[0], volumes, strict=True):
        axes.set_title(name)
    for number, row in enumerate(grid):
        limits = float(first[number].min()), float(first[number].max())
        for axes, volume in zip(row, volumes.values(), strict=True):
            _show(axes, _slice_of_crop(volume, number), limits)
    _save(figure, path)


def _slice_of_crop(volumes: Tensor, number: int) -> Tensor:
    """[B 1 *size] -> of one crop the middle axial slice [y x]; of fewer crops that of the last."""
    return _middle_slice(volumes[min(number, len(volumes) - 1), 0])


def _middle_slice(volume: Tensor) -> Tensor:
    """[*size] -> the middle axial slice [y x]; a slice is its own."""
    return volume[volume.shape[0] // 2] if volume.ndim == 3 else volume


def _show(axes: Axes, image: Tensor, limits: tuple[float, float]) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set_facecolor("tab:blue")
    axes.set(xticks=[], yticks=[])


def _smooth(values: tuple[float, ...]) -> list[float]:
    """The moving average; what is not finite leaves it as it is."""
    smooth, out = math.nan, []
    for value in values:
        if is_finite(value):
            smooth = value if math.isnan(smooth) else SMOOTHING * smooth + (1 - SMOOTHING) * value
        out.append(smooth)
    return out


def is_finite(value: object) -> bool:
    """Whether it is a number, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # the object interface: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
