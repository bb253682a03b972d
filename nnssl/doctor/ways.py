"""How this package is installed, and how nnU-Net's commands find its trainers."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

from nnssl import trainer_path


def installation() -> str:
    """In words; where Python reads no start-up file of ours, why."""
    if repository := trainer_path.source_checkout():
        return (
            f"run from the sources in {repository} (an editable install, or the folder itself), "
            "which have no start-up file"
        )
    folder = Path(trainer_path.trainers_folder()).parents[1]
    if folder in site_folders():
        return f"installed in {folder}"
    return (
        f"in {folder}, which is not a site-packages folder of this Python (pip install --target, "
        "PYTHONPATH): no start-up file is read there"
    )


def way() -> str:
    """By what nnU-Net's commands find them, where they do."""
    if (file := start_up_file()) is not None:
        return f"the start-up file {file}"
    return f"the variable {trainer_path.VARIABLE}, which the shell or the calling program sets"


def start_up_file() -> Path | None:
    """The one that Python reads and that names our folder."""
    there = (folder / trainer_path.START_UP for folder in site_folders() if _holds_ours(folder))
    return next(filter(Path.is_file, there), None)


def _holds_ours(folder: Path) -> bool:
    return Path(trainer_path.trainers_folder()).is_relative_to(folder / "nnssl")


def other_copies(before: str) -> list[str]:
    """Folders of another copy of this package that `before`, a value of the variable, names."""
    return [folder for folder in named_in(before) if trainer_path.is_other_copy(folder)]


def named_in(value: str) -> list[str]:
    """The folders that a value of the variable names."""
    return [folder for folder in value.split(os.pathsep) if folder.strip()]


def site_folders() -> list[Path]:
    """Those in which Python reads start-up files (`site`)."""
    named = [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(folder) for folder in named if folder in sys.path]
