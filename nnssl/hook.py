"""Where nnU-Net finds our trainers. Imported at each start of Python by nnssl_trainers.pth: standard library only."""

from __future__ import annotations

import os

VARIABLE = "nnUNet_extTrainer"


def source_checkout() -> str | None:
    """The repository this file lies in, or None where the package is installed from a wheel.

    There `trainers/` and `plans/` lie beside `nnssl/`, not inside it.
    """
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 start-up time
    is_ours = os.path.isfile(os.path.join(repository, "trainers", "nnssl_trainers.pth"))  # noqa: PTH113, PTH118
    return repository if is_ours else None


def trainers_folder() -> str:
    """The folder to name in nnUNet_extTrainer; the same from a wheel, an editable install and a source checkout."""
    parent = source_checkout() or os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    return os.path.join(parent, "trainers")  # noqa: PTH118


def add_trainers() -> None:
    """Append our folder to nnUNet_extTrainer, after what the user has put there; once."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]
    if trainers_folder() not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, trainers_folder()])
