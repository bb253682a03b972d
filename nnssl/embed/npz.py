"""Arrays in one .npz, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnssl import files


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] names, none of options
