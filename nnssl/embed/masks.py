"""The label files that belong to scans, by their names."""

from __future__ import annotations

import os
from pathlib import Path

from nnssl.data.scans import Found
from nnssl.data.volumes import VOLUME_ENDINGS, ending

CHANNEL = "_0000"  # at the end of an image's name in nnU-Net's datasets; its labels have none

Masks = dict[str, list[Path]]  # label files by name, endings left out


def find(folder: Path) -> Masks:
    """Label files at any depth by name, endings left out. Raises FileNotFoundError, ValueError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of masks at {folder}")
    found: Masks = {}
    for where, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            if ending(name) and not name.startswith("."):
                found.setdefault(stem(name), []).append(Path(where, name))
    if not found:
        raise ValueError(f"no masks in {folder}: looked for {', '.join(VOLUME_ENDINGS)}")
    return found


def stem(name: str) -> str:
    """Without the ending of a volume's file."""
    return name[: len(name) - len(ending(name))]


def mask_of(found: Found, masks: Masks) -> Path | None:
    """The label file of the same name, with or without nnU-Net's _0000; of several the nearest."""
    name = stem(Path(found.path).name)
    for wanted in (name, name.removesuffix(CHANNEL)):
        if there := masks.get(wanted):
            parts = set(Path(found.path).parts)
            return max(there, key=lambda path: (len(parts & set(path.parts)), str(path)))
    return None
