"""Raw nnU-Net datasets of which only the fingerprint is large: planning reads nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from nnssl import files

ID, NAME = 904, "Dataset904_Planned"
PROPERTIES = {"mean": 80.0, "std": 150.0, "min": -1000.0, "max": 2000.0, "median": 60.0,
              "percentile_00_5": -950.0, "percentile_99_5": 1300.0}  # fmt: skip


def synthetic_dataset(
    folders: dict[str, Path],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    cases: int = 40,
    channels: tuple[str, ...] = ("CT",),
    labels: dict | None = None,
    **more,
) -> Path:
    """The preprocessed folder with a fingerprint of `cases` images of `shape` voxels and `spacing`
    mm (z y x).
    """
    raw, preprocessed = folders["nnUNet_raw"] / NAME, folders["nnUNet_preprocessed"] / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True, exist_ok=True)
    small = SimpleITK.GetImageFromArray(np.zeros((2, 2, 2), np.uint8))
    for case in range(cases):
        SimpleITK.WriteImage(small, str(raw / "labelsTr" / f"case_{case:03d}.nii.gz"))
        for channel in range(len(channels)):
            SimpleITK.WriteImage(
                small, str(raw / "imagesTr" / f"case_{case:03d}_{channel:04d}.nii.gz")
            )
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels or {"background": 0, "organ": 1, "tumour": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **more,
    }
    files.write_json(raw / "dataset.json", dataset)
    fingerprint = {
        "spacings": [list(spacing)] * cases,
        "shapes_after_crop": [list(shape)] * cases,
        "foreground_intensity_properties_per_channel": {
            str(c): PROPERTIES for c in range(len(channels))
        },
        "median_relative_size_after_cropping": 1.0,
    }
    files.write_json(preprocessed / "dataset_fingerprint.json", fingerprint)
    return preprocessed
