"""Scores of a validated training, by case and label: nnU-Net's Dice, and from the surfaces surface
Dice and HD95.

Surfaces are made of voxels: those of a mask that touch, by a face, what is not the mask or the
image's edge. Distances are in mm between the voxels' middles, exact (scipy's Euclidean distance
transform). Both measures are those of MONAI (`compute_surface_dice`,
`compute_hausdorff_distance(percentile=95)`), which is their oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from nnssl import files
from nnssl.study.rows import CaseRow
from nnssl.types import Spacing

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

PERCENT = 95


@dataclass(frozen=True)
class Surfaces:
    """surface_dice: 0 to 1; hd95: mm. Both None where neither mask holds a voxel."""

    surface_dice: float | None
    hd95: float | None


def surfaces(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, tolerance: float
) -> Surfaces:
    """Compare two Bool masks of one shape; `spacing` in mm by axis, `tolerance` in mm.

    Surface Dice (Nikolov et al. 2021): the fraction of both surfaces' voxels that lie within
    `tolerance` of the other surface. HD95: the 95th percentile of the distances, the larger of both
    directions. Where only one mask is empty there is no distance: surface Dice is 0 and HD95 the
    image's diagonal, the worst that could be, since leaving such cases out would reward what misses
    an organ.
    """
    if not (prediction.any() or truth.any()):
        return Surfaces(None, None)
    # A 2D image is read as one slice, whose every voxel would touch the image's edge.
    spacing = tuple(mm for mm, size in zip(spacing, truth.shape, strict=True) if size > 1)
    prediction, truth = prediction.squeeze(), truth.squeeze()
    if not (prediction.any() and truth.any()):
        return Surfaces(0.0, float(np.linalg.norm(np.multiply(truth.shape, spacing))))
    # nothing outside of the box has a part in the distances
    (box,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
    return _compare(_surface(prediction[box]), _surface(truth[box]), spacing, tolerance)


def _compare(ours: np.ndarray, theirs: np.ndarray, spacing: Spacing, tolerance: float) -> Surfaces:
    """Compare two surfaces that both hold a voxel."""
    to_theirs, to_ours = _distances(theirs, spacing)[ours], _distances(ours, spacing)[theirs]
    near = (to_theirs <= tolerance).sum() + (to_ours <= tolerance).sum()
    return Surfaces(
        surface_dice=float(near / (len(to_theirs) + len(to_ours))),
        hd95=float(max(np.percentile(to_theirs, PERCENT), np.percentile(to_ours, PERCENT))),
    )


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~np.asarray(ndimage.binary_erosion(mask), bool)


def _distances(surface: np.ndarray, spacing: Spacing) -> np.ndarray:
    """mm from each voxel to the nearest of `surface`."""
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))


def summary(fold: Path) -> list[dict]:
    """nnU-Net's own metrics and files, an entry per validation case."""
    return files.read_json(fold / "validation" / "summary.json")["metric_per_case"]


def case_rows(run: str, fold: Path, tolerance: float) -> list[CaseRow]:
    """Rows of a validated fold, by case and label; None where undefined.

    fold: nnU-Net's fold folder, with validation/summary.json; dataset.json and plans.json lie in
    the one above.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    labels = Labels.of(fold.parent)
    entries = summary(fold)
    if not entries:
        return []
    example = entries[0]["reference_file"]
    reader = determine_reader_writer_from_dataset_json(labels.dataset, example, verbose=False)()
    return [row for entry in entries for row in _case(run, entry, labels, reader, tolerance)]


def _case(
    run: str, entry: dict, labels: Labels, reader: BaseReaderWriter, tolerance: float
) -> Iterator[CaseRow]:
    """entry: of a case, in nnU-Net's summary."""
    prediction, _ = reader.read_seg(entry["prediction_file"])
    truth, properties = reader.read_seg(entry["reference_file"])
    case = Path(entry["reference_file"]).name.removesuffix(labels.dataset["file_ending"])
    for label, region in labels.regions.items():
        masks = labels.masks(region, prediction[0], truth[0])
        measured = vars(surfaces(*masks, properties["spacing"], tolerance))
        yield CaseRow(run=run, case=case, label=label, dice=_dice(entry, region), **measured)


def _dice(entry: dict, region: int | tuple[int, ...]) -> float | None:
    dice = float(entry["metrics"][str(region)]["Dice"])
    return None if isnan(dice) else dice


@dataclass(frozen=True)
class Labels:
    """What of a segmentation is scored.

    dataset:  content of dataset.json.
    regions:  name to nnU-Net's label, or its labels of a region.
    ignored:  the label of voxels that count nowhere; None: all voxels count.
    """

    dataset: dict
    regions: dict[str, int | tuple[int, ...]]
    ignored: int | None

    @classmethod
    def of(cls, model: Path) -> Labels:
        """From nnU-Net's folder with the folds."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        dataset = files.read_json(model / "dataset.json")
        manager = PlansManager(files.read_json(model / "plans.json")).get_label_manager(dataset)
        found = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        names = {_values(value): name for name, value in dataset["labels"].items()}
        return cls(dataset, {names[_values(one)]: one for one in found}, manager.ignore_label)

    def masks(
        self, region: int | tuple[int, ...], prediction: np.ndarray, truth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bool, of both."""
        counted = np.asarray(self.ignored is None) | (truth != self.ignored)
        values = _values(region)
        return np.isin(prediction, values) & counted, np.isin(truth, values) & counted


def _values(label: int | list | tuple) -> tuple[int, ...]:
    """The values of a label or a region, as dataset.json or nnU-Net gives it."""
    return tuple(sorted(map(int, np.atleast_1d(label))))
