"""The result of the demo: Dice of both models, the time of each stage, and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.demo.chain import TRAINERS, Demo
from nnssl.files import atomic, write_json
from nnssl.phantoms import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORGANS = {name: value for name, value in LABELS.items() if value}
WINDOW = (-160, 240)  # HU shown, the usual abdominal window
COLOURS = {1: "tab:orange", 2: "tab:cyan", 3: "tab:pink"}


def read_array(path: Path) -> np.ndarray:
    import SimpleITK  # only who reads files needs it

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two Bool arrays; 1 when both are empty."""
    total = prediction.sum() + truth.sum()
    return float(2 * (prediction & truth).sum() / total) if total else 1.0


def mean_dice(predictions: Path, truths: Path) -> dict[str, float]:
    """Mean over the cases, per organ, and `mean` over the organs."""
    names = _case_files(truths)
    cases = [(read_array(predictions / name), read_array(truths / name)) for name in names]
    per_organ = {name: _mean_dice_of(value, cases) for name, value in ORGANS.items()}
    return {**per_organ, "mean": float(np.mean(list(per_organ.values())))}


def _case_files(folder: Path) -> list[str]:
    """The names of the cases' files in `folder`, sorted."""
    return [path.name for path in sorted(folder.glob("*.nii.gz"))]


def _mean_dice_of(value: int, cases: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """cases: prediction and truth of each."""
    return float(np.mean([dice(ours == value, truth == value) for ours, truth in cases]))


def summarise(demo: Demo, seconds: dict[str, float]) -> dict:
    """Compute, draw and write the result into the demo's folder, and return it."""
    truths = demo.raw / "labelsTs"
    scores = {start: mean_dice(demo.predictions(start), truths) for start in TRAINERS}
    result = {"dice": scores, "seconds": seconds, "settings": demo.settings()}
    write_json(demo.folder / "result.json", result)
    draw_unseen_cases(demo, demo.folder / "demo.png")
    return result


def result_text(demo: Demo, result: dict) -> str:
    """The result as text: two tables and where the picture is."""
    return "\n".join(
        [
            *_dice_table(result["dice"], demo.size.unseen),
            "",
            *_time_table(result["seconds"]),
            "",
            f"Picture: {demo.folder / 'demo.png'}",
            "One seed, few cases, minutes of training: this shows that the pipeline works, not "
            "how much pretraining helps.",
        ]
    )


def _dice_table(scores: dict[str, dict[str, float]], unseen: int) -> list[str]:
    title = f"Dice, mean over {unseen} unseen phantoms"
    header = f"{title:40}" + "".join(f"{start:>21}" for start in scores)
    return [header, *(_dice_row(organ, scores) for organ in (*ORGANS, "mean"))]


def _dice_row(organ: str, scores: dict[str, dict[str, float]]) -> str:
    return f"  {organ:38}" + "".join(f"{by[organ]:21.3f}" for by in scores.values())


def _time_table(seconds: dict[str, float]) -> list[str]:
    with_total = {**seconds, "total": sum(seconds.values())}
    return ["Time", *(f"  {name:38}{value:19.0f} s" for name, value in with_total.items())]


def draw_unseen_cases(demo: Demo, path: Path) -> None:
    """Two unseen cases, one row each: scan, truth, and both predictions, on the slice with the most
    organs.
    """
    from matplotlib.figure import Figure

    names = _case_files(demo.raw / "labelsTs")[:2]
    figure = Figure(figsize=(13, 3.2 * len(names)))
    grid = figure.subplots(len(names), 2 + len(TRAINERS), squeeze=False)
    for row, name in zip(grid, names, strict=True):
        _draw_case(row, demo, name)
    _add_legend(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")


def _add_legend(figure: Figure) -> None:
    """The organs' colours."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], lw=6, color=COLOURS[v], label=n) for n, v in ORGANS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(ORGANS))


def _draw_case(row: Sequence[Axes], demo: Demo, name: str) -> None:
    scan = read_array(demo.raw / "imagesTs" / name.replace(".nii.gz", "_0000.nii.gz"))
    truth = read_array(demo.raw / "labelsTs" / name)
    shown = most_organs(truth)
    maps = {"scan": None, "truth": truth[shown]}
    maps |= {title: labels[shown] for title, labels in _predicted(demo, name).items()}
    for axes, (title, labels) in zip(row, maps.items(), strict=True):
        _draw_slice(axes, scan[shown], labels)
        axes.set_title(title)


def _predicted(demo: Demo, name: str) -> dict[str, np.ndarray]:
    """The labels of a case by both models, each under its title."""
    return {f"predicted, {start}": read_array(demo.predictions(start) / name) for start in TRAINERS}


def _draw_slice(axes: Axes, scan: np.ndarray, labels: np.ndarray | None) -> None:
    axes.imshow(scan, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
    if labels is not None:
        axes.imshow(coloured(labels))
    axes.axis("off")


def most_organs(labels: np.ndarray) -> int:
    """The slice of [Z Y X] labels with the most different organs, then the largest of the smallest
    organ.
    """
    areas = np.stack([(labels == value).sum(axis=(1, 2)) for value in ORGANS.values()])
    organs, smallest = (areas > 0).sum(axis=0), areas.min(axis=0)
    return int(np.lexsort((smallest, organs))[-1])


def coloured(labels: np.ndarray) -> np.ndarray:
    """[Y X] labels to [Y X 4] colours, clear where there is no organ."""
    from matplotlib.colors import to_rgba

    image = np.zeros((*labels.shape, 4))
    for value in ORGANS.values():
        image[labels == value] = (*to_rgba(COLOURS[value])[:3], 0.55)
    return image
