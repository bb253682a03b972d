"""Small made CT for the tests of nnssl/data: arrays, files of every format, DICOM series with any
geometry.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from nnssl.data.plan import Plan, make_plan
from nnssl.data.survey import body_histogram

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def ct_array(shape: tuple[int, int, int] = (16, 24, 28), seed: int = 0) -> np.ndarray:
    """int16 HU [Z Y X]: noisy air around a body with a soft rim and a bone, different for each
    seed.
    """
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(0.3 * z**2 + (y / 0.8) ** 2 + (x / 0.9) ** 2)
    hu = np.where(radius < 1, 40.0, -1000.0) + np.where(radius < 0.25, 700.0, 0.0)
    hu = np.where((radius >= 0.95) & (radius < 1.05), -600.0, hu)
    return np.clip(hu + generator.normal(0, 15, shape), -1024, 3071).astype(np.int16)


def write_volume(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] = (3.0, 2.0, 1.5)
) -> Path:
    """`spacing` in (z, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    SimpleITK.WriteImage(image, str(path))
    return path


def write_series(
    folder: Path,
    array: np.ndarray,
    positions: list[tuple[float, float, float]],
    orientation: tuple[float, ...] = AXIAL,
    pixel: float = 1.5,
    uid: str = "1.2.3.4",
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL",
    modality: str = "CT",
    names: str = "slice",
    **tags: str,
) -> Path:
    """One DICOM file per slice of `array` [Z Y X] in HU; the writer stores them with the intercept
    -1024 of scanners.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    # File names run against the stack, as they do in real folders.
    for number, (plane, position) in enumerate(zip(array, positions, strict=True)):
        image = SimpleITK.GetImageFromArray(plane[None].astype(np.int16))
        image.SetSpacing((pixel, pixel, 1.0))
        header = {
            "0008|0008": image_type,
            "0008|0060": modality,
            "0008|0018": f"{uid}.{number + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{o:.6f}" for o in orientation),
            "0028|1052": "-1024",
            "0028|1053": "1",
            **{tag.replace("_", "|"): value for tag, value in tags.items()},
        }
        for tag, value in header.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{names}_{len(array) - number:03d}.dcm"))
        writer.Execute(image)
    return folder


def straight(count: int, step: float = 2.0) -> list[tuple[float, float, float]]:
    return [(-10.0, -20.0, 100.0 + step * i) for i in range(count)]


class Line:
    """What make_plan needs to know of a scan."""

    def __init__(
        self, path: str, shape: tuple[int, ...], spacing: tuple[float, ...], series: str = ""
    ) -> None:
        self.path, self.series, self.shape, self.spacing = path, series, shape, spacing


def small_plan(
    paths: list[Path],
    arrays: list[np.ndarray],
    spacings: tuple[float, ...] = (3.0, 2.0, 1.5),
    **options,
) -> Plan:
    """A plan for scans of one spacing; `options` go to make_plan."""
    lines = [
        Line(str(path), array.shape, spacings) for path, array in zip(paths, arrays, strict=True)
    ]
    return make_plan(
        "made", lines, (body_histogram(array.astype(np.float32)) for array in arrays), **options
    )
