"""The label files that belong to scans, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nnssl.data.scans import Found
from nnssl.data.volumes import VOLUME_ENDINGS, ending, is_volume

CHANNEL = "_0000"  # at the end of an image's name in nnU-Net's datasets; its labels have none

Masks = dict[str, list[Path]]  # label files by name, endings left out


def find_label_files(folder: Path) -> Masks:
    """Label files at any depth by name, endings left out. Raises FileNotFoundError, ValueError."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"mask folder {folder} does not exist; give a folder of label files"
        )
    found: Masks = {}
    for path in _volumes(folder):
        found.setdefault(stem(path.name), []).append(path)
    if not found:
        raise ValueError(f"no masks in {folder}: searched for {', '.join(VOLUME_ENDINGS)}")
    return found


def _volumes(folder: Path) -> Iterator[Path]:
    """Files of volumes at any depth; hidden ones are none."""
    for where, _, names in os.walk(folder, followlinks=True):
        yield from (Path(where, name) for name in sorted(names) if is_volume(name))


def stem(name: str) -> str:
    """Without the ending of a volume's file."""
    return name[: len(name) - len(ending(name))]


def mask_of(found: Found, masks: Masks) -> Path | None:
    """The label file of the same name, with or without nnU-Net's _0000; of several the nearest."""
    scan = Path(found.path)
    name = stem(scan.name)
    there = masks.get(name) or masks.get(name.removesuffix(CHANNEL))
    return max(there, key=lambda path: (_shared_parts(path, scan), str(path))) if there else None


def _shared_parts(one: Path, other: Path) -> int:
    return len(set(one.parts) & set(other.parts))
