"""Raw nnU-Net datasets of a few tiny cases, of any kind: written as nnU-Net wants them, read back
for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK
from skimage import io

from nnssl import files

TRAINING, UNSEEN = 5, "unseen"
IGNORE = "ignore"
# the image's axes are not the patient's, one runs against
PATIENT = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)
ORIGIN = (11.5, -7.25, 30.0)


@dataclass(frozen=True)
class Raw:
    """What a dataset consists of."""

    ending: str = ".nii.gz"
    channels: tuple[str, ...] = ("CT",)  # nnU-Net's channel names, which choose the normalisation
    labels: dict = field(default_factory=lambda: {"background": 0, "organ": 1, "tumour": 2})
    shape: tuple[int, ...] = (20, 24, 22)  # [Z Y X]; [Y X] for natural images
    spacing: tuple[float, float, float] = (2.5, 2.0, 2.0)  # mm, z y x
    more: dict = field(default_factory=dict)  # further entries of dataset.json

    @property
    def natural(self) -> bool:
        return len(self.shape) == 2

    @property
    def values(self) -> set[int]:
        """Of the voxels of the labels' files."""
        return set(np.hstack(list(self.labels.values())).tolist())

    @property
    def predictable(self) -> set[int]:
        """The values that a segmentation may have."""
        order = self.more.get("regions_class_order", sorted(self.values))
        return {0, *order} - {self.labels.get(IGNORE)}

    @property
    def evaluated(self) -> set[str]:
        """What nnU-Net's summary of a validation lists: labels, or regions as tuples."""
        wanted = [
            value for name, value in self.labels.items() if name not in ("background", IGNORE)
        ]
        return {str(tuple(value) if isinstance(value, list) else value) for value in wanted}


def write_raw(folder: Path, raw: Raw) -> None:
    """`TRAINING` labelled cases and, in imagesTs, one of other size that is not."""
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for number in range(TRAINING):
        segmented = labelled(raw, raw.shape, number)
        _write(folder / "labelsTr" / f"case_{number}{raw.ending}", segmented.astype(np.uint8), raw)
        _write_image(folder / "imagesTr", f"case_{number}", segmented, number, raw)
    larger = tuple(n + 3 for n in raw.shape)
    _write_image(folder / "imagesTs", UNSEEN, labelled(raw, larger, TRAINING), TRAINING, raw)
    files.write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(number): name for number, name in enumerate(raw.channels)},
            "labels": raw.labels,
            "numTraining": TRAINING,
            "file_ending": raw.ending,
            **raw.more,
        },
    )


def labelled(raw: Raw, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Cubes of 4 voxels per side with all the labels in turn; background between."""
    cells = np.stack(np.meshgrid(*(np.arange(n) // 4 for n in shape), indexing="ij"))
    turn = seed + (cells * np.array([1, 5, 7][: len(shape)]).reshape(-1, *[1] * len(shape))).sum(0)
    values = sorted(raw.values)
    return np.where(cells.sum(0) % 2, np.array(values)[turn % len(values)], 0)


def _write_image(folder: Path, case: str, segmented: np.ndarray, seed: int, raw: Raw) -> None:
    generator = np.random.default_rng(seed)
    noisy = [
        segmented * 20.0 * (c + 1) + generator.normal(60, 10, segmented.shape)
        for c in range(len(raw.channels))
    ]
    if raw.natural:  # all colours in one file
        colours = np.stack(noisy, -1).clip(0, 255).astype(np.uint8)
        _write(
            folder / f"{case}_0000{raw.ending}",
            colours if len(noisy) == 3 else colours[..., 0],
            raw,
        )
        return
    for number, (name, values) in enumerate(zip(raw.channels, noisy, strict=True)):
        values = values - 100 if name == "CT" else values.clip(0)
        _write(folder / f"{case}_{number:04d}{raw.ending}", values.astype(np.int16), raw)


def _write(path: Path, array: np.ndarray, raw: Raw) -> None:
    if raw.natural:
        io.imsave(path, array, check_contrast=False)
        return
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(raw.spacing[::-1])
    image.SetOrigin(ORIGIN)
    image.SetDirection(PATIENT)
    SimpleITK.WriteImage(image, str(path))


def geometry(path: Path) -> tuple[tuple[int, ...], list[float]]:
    """Size, and spacing, origin and direction, of an image of any kind."""
    if path.suffix == ".png":
        return io.imread(path).shape[:2], []
    image = SimpleITK.ReadImage(str(path))
    return image.GetSize(), [*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()]


def voxels(path: Path) -> np.ndarray:
    return (
        io.imread(path)
        if path.suffix == ".png"
        else SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    )
