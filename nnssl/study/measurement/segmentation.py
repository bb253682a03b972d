"""What a validated training is worth, by case and label: nnU-Net's Dice, and from the surfaces
surface Dice and HD95.

Surfaces are made of voxels: those of a mask that touch, by a face, what is not the mask or the
image's edge. Distances are in mm between the voxels' middles, exact (scipy's Euclidean distance
transform). Both measures are those of MONAI (`compute_surface_dice`,
`compute_hausdorff_distance(percentile=95)`), which is their oracle in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnssl import files
from nnssl.types import Spacing

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
    box = _box(prediction | truth)
    ours, theirs = _surface(prediction[box]), _surface(truth[box])
    to_theirs = _distances(theirs, spacing)[ours]
    to_ours = _distances(ours, spacing)[theirs]
    near = (to_theirs <= tolerance).sum() + (to_ours <= tolerance).sum()
    return Surfaces(
        surface_dice=float(near / (len(to_theirs) + len(to_ours))),
        hd95=float(max(np.percentile(to_theirs, PERCENT), np.percentile(to_ours, PERCENT))),
    )


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Where `mask` is: nothing outside of it has a part in the distances."""
    axes = range(mask.ndim)
    spans = (
        np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis)))
        for axis in axes
    )
    return tuple(slice(span[0], span[-1] + 1) for span in spans)


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~np.asarray(ndimage.binary_erosion(mask), bool)


def _distances(surface: np.ndarray, spacing: Spacing) -> np.ndarray:
    """mm from each voxel to the nearest of `surface`."""
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))


def cases(fold: Path, tolerance: float) -> list[dict]:
    """Rows {"case", "label", "dice", "surface_dice", "hd95"} of a validated fold; None where
    undefined.

    fold: nnU-Net's fold folder, with validation/summary.json; dataset.json and plans.json lie in
    the one above.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = files.read_json(fold.parent / "dataset.json")
    manager = PlansManager(files.read_json(fold.parent / "plans.json")).get_label_manager(dataset)
    regions = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    names = {_values(value): name for name, value in dataset["labels"].items()}
    rows = []
    reader = None
    for entry in files.read_json(fold / "validation" / "summary.json")["metric_per_case"]:
        predicted, reference = entry["prediction_file"], entry["reference_file"]
        if reader is None:
            reader = determine_reader_writer_from_dataset_json(dataset, reference, verbose=False)()
        prediction, _ = reader.read_seg(predicted)
        truth, properties = reader.read_seg(reference)
        counted = (
            truth[0] != manager.ignore_label
            if manager.has_ignore_label
            else np.ones(truth[0].shape, bool)
        )
        for region in regions:
            masks = [np.isin(image[0], _values(region)) & counted for image in (prediction, truth)]
            measured = surfaces(masks[0], masks[1], properties["spacing"], tolerance)
            dice = float(entry["metrics"][str(region)]["Dice"])
            rows.append(
                {
                    "case": Path(reference).name.removesuffix(dataset["file_ending"]),
                    "label": names[_values(region)],
                    "dice": None if isnan(dice) else dice,
                    "surface_dice": measured.surface_dice,
                    "hd95": measured.hd95,
                }
            )
    return rows


def _values(label: int | list | tuple) -> tuple[int, ...]:
    """Of a label or a region, as dataset.json or nnU-Net gives it."""
    return tuple(sorted(map(int, np.atleast_1d(label))))
