"""Phantoms as image files: a folder of scans, or a raw dataset of nnU-Net."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nnssl.files import write_json
from nnssl.phantoms.anatomy import LABELS
from nnssl.phantoms.render import phantom
from nnssl.types import Shape, Spacing


def write_scan(path: Path | str, volume: np.ndarray, spacing: Spacing) -> None:
    """One [Z Y X] volume as an image file of the suffix's kind (.nii.gz, .nrrd, .mha)."""
    import SimpleITK  # only who writes files needs it

    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(tuple(reversed(spacing)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def write_folder(
    folder: Path | str, seeds: Iterable[int], shape: Shape | None = None
) -> list[Path]:
    """Unlabelled phantoms, one `phantom_<seed>.nii.gz` per seed, for pretraining."""
    return [_write_unlabelled(Path(folder), seed, shape) for seed in seeds]


def _write_unlabelled(folder: Path, seed: int, shape: Shape | None) -> Path:
    scan = phantom(seed, shape)
    path = folder / f"phantom_{seed:04d}.nii.gz"
    write_scan(path, scan.hu, scan.spacing)
    return path


def write_nnunet_dataset(
    folder: Path | str,
    training: Iterable[int],
    unseen: Iterable[int] = (),
    shape: Shape | None = None,
) -> None:
    """An nnU-Net raw dataset in `folder` (`DatasetXXX_Name`); the unseen cases come with their
    truth.
    """
    folder = Path(folder)
    training = list(training)
    for part, seeds in (("Tr", training), ("Ts", unseen)):
        for seed in seeds:
            _write_case(folder, part, seed, shape)
    write_json(folder / "dataset.json", _description(len(training)))


def _description(cases: int) -> dict:
    """dataset.json of so many training cases."""
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def _write_case(folder: Path, part: str, seed: int, shape: Shape | None) -> None:
    """Image and labels of one case; `part`: Tr or Ts, as nnU-Net's folders end."""
    scan = phantom(seed, shape)
    case = f"phantom_{seed:04d}"
    write_scan(folder / f"images{part}" / f"{case}_0000.nii.gz", scan.hu, scan.spacing)
    write_scan(folder / f"labels{part}" / f"{case}.nii.gz", scan.labels, scan.spacing)
