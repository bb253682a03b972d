"""neighbours.png and projection.png: nearest neighbours and a 2D projection, coloured by the scans'
folders.

scikit-learn projects. Both pictures use the features of one stage, that which finds scans of the
same folder best; where there is one folder only, or one scan in each, SHOWN.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl import files
from nnssl.embed.table import FeatureTable
from nnssl.types import PrintFn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 3  # the stage whose maps have a stride of 16, where no folders tell
FEWEST = 5  # scans
MOST_NAMED = 20  # groups in a legend; with more it covers the points, and colours repeat
QUERIES, NEAREST = 6, 5
PERPLEXITY = 30.0  # of t-SNE, where there are enough scans


def draw_pictures(table: FeatureTable, folder: Path, thumbnails: bool, print_fn: PrintFn) -> None:
    """Write both. Raises ValueError where there are too few scans."""
    if len(table.id) < FEWEST:
        raise ValueError(f"the pictures need at least {FEWEST} scans, found {len(table.id)}")
    groups = sorted(set(table.group))
    stage = _most_alike(table, print_fn) if 1 < len(groups) < len(table.id) else SHOWN
    neighbours, projection = folder / "neighbours.png", folder / "projection.png"
    _save(_neighbours(table, groups, stage, thumbnails), neighbours)
    _save(_projection(table, groups, stage), projection)
    print_fn(f"{neighbours}, {projection}: by stage{stage}")


def _most_alike(table: FeatureTable, print_fn: PrintFn) -> int:
    """The stage where scans of the same folder are nearest to each other."""
    agree = [same_group(stage, table.group) for stage in table.stages]
    shown = ", ".join(f"stage{n} {value:.3f}" for n, value in enumerate(agree))
    print_fn(
        "fraction of scans whose nearest neighbour is in their own folder, averaged over "
        f"folders: {shown}"
    )
    return int(np.argmax(agree))


def standardised(features: np.ndarray) -> np.ndarray:
    """[n C] by channel to mean 0 and std 1 over the scans, then each scan to length 1.

    Layer norm leaves a large common part in all tokens, which says nothing of a scan.
    """
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 1e-6, spread, 1.0)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(1e-9)


def _cosines(features: np.ndarray) -> np.ndarray:
    """[n n] of each scan with each other; -inf with itself."""
    vectors = standardised(features)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    return alike


def nearest(features: np.ndarray, count: int) -> np.ndarray:
    """[n min(count, n - 1)]: for each scan the others with the largest cosine, best first."""
    order = np.argsort(-_cosines(features), axis=1, kind="stable")
    return order[:, : min(count, len(order) - 1)]


def same_group(features: np.ndarray, groups: list[str]) -> float:
    """Fraction of scans whose nearest neighbour is of their group, as a mean over groups of two or
    more scans.
    """
    labels, first = np.array(groups), nearest(features, 1)[:, 0]
    several = sorted(name for name, scans in Counter(groups).items() if scans > 1)
    hits = [float((labels[first[labels == name]] == name).mean()) for name in several]
    return float(np.mean(hits)) if hits else 0.0


def _colours(groups: list[str]) -> dict[str, tuple]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    return {name: palette(number % palette.N) for number, name in enumerate(groups)}


def _queries(table: FeatureTable, groups: list[str]) -> list[int]:
    """One scan of each group in turn, evenly from its sorted ids."""
    rounds = -(-QUERIES // len(groups))
    by_group = [_evenly(_scans_of(table, name), rounds) for name in groups]
    in_turn = chain.from_iterable(zip(*by_group, strict=True))
    return list(dict.fromkeys(in_turn))[:QUERIES]


def _scans_of(table: FeatureTable, group: str) -> list[int]:
    """Their rows, sorted by id."""
    order = np.argsort(table.id, kind="stable")
    return [int(row) for row in order if table.group[row] == group]


def _evenly(scans: list[int], count: int) -> list[int]:
    """The middles of `count` equal parts of the list; of a short one some twice."""
    return [scans[len(scans) * (2 * part + 1) // (2 * count)] for part in range(count)]


def _neighbours(table: FeatureTable, groups: list[str], stage: int, thumbnails: bool) -> Figure:
    """One row per query: the scan, and those nearest to it."""
    near, colours = nearest(table.stages[stage], NEAREST), _colours(groups)
    rows = [[query, *near[query]] for query in _queries(table, groups)]
    figure, grid = _empty_grid(len(rows), len(rows[0]))
    for axes, scan in zip(grid.flat, chain.from_iterable(rows), strict=True):
        _show_scan(axes, table, scan, thumbnails)
        _frame(axes, colours[table.group[scan]], 4 if axes in grid[:, 0] else 2)
    grid[0, 0].set_title(f"query: {grid[0, 0].get_title()}".rstrip(": "), fontsize=8)
    figure.suptitle(f"nearest by cosine, stage{stage}", fontsize=9)
    return figure


def _empty_grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """The figure, and its axes [rows columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * columns, 1.75 * rows + 0.4), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _frame(axes: Axes, colour: tuple, width: int) -> None:
    for side in axes.spines.values():
        side.set(color=colour, linewidth=width)


def _show_scan(axes: Axes, table: FeatureTable, scan: int, thumbnails: bool) -> None:
    """Its thumbnail under its group, or the group alone."""
    axes.set(xticks=[], yticks=[])
    group = table.group[scan]
    if thumbnails:
        _show_grey(axes, table.thumbnails[scan])
        axes.set_title(group, fontsize=8)
    else:
        axes.text(0.5, 0.5, group, ha="center", va="center", fontsize=9)


def _show_grey(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _projection(table: FeatureTable, groups: list[str], stage: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    colours = _colours(groups)
    projections = _projected(standardised(table.stages[stage]))
    for axes, (name, points) in zip(figure.subplots(1, 2), projections.items(), strict=True):
        for group in groups:
            _scatter(axes, table, group, points, colours[group])
        axes.set_title(f"{name}, stage{stage}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    if len(groups) <= MOST_NAMED:
        axes.legend(fontsize=8)
    return figure


def _scatter(
    axes: Axes, table: FeatureTable, group: str, points: np.ndarray, colour: tuple
) -> None:
    chosen = [name == group for name in table.group]
    label = f"{group or 'scans'} ({sum(chosen)})"
    axes.scatter(*points[chosen].T, s=14, color=colour, label=label, alpha=0.8)


def _projected(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """[n C] in the plane, [n 2], by the name of the projection."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(2, random_state=0).fit(vectors)
    fraction = pca.explained_variance_ratio_.sum()
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    return {
        f"PCA ({fraction:.0%} of the variance)": pca.transform(vectors),
        f"t-SNE (perplexity {perplexity:.0f})": tsne.fit_transform(vectors),
    }


def _save(figure: Figure, path: Path) -> None:
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
