"""Where nnU-Net finds our trainers. Run at each start of Python by nnssl_trainers.pth, and by
`import nnssl`, which does for notebooks and for `pip install --target`, where Python reads no
start-up file: standard library only.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE = "nnUNet_extTrainer"
START_UP = "nnssl_trainers.pth"
# what this process was started with, the start-up file's work included
BEFORE = os.environ.get(VARIABLE)


def source_checkout() -> str | None:
    """The repository this file lies in, or None where the package is installed from a wheel.

    There `trainers/` and `plans/` lie beside `nnssl/`, not inside it.
    """
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 start-up time
    is_ours = os.path.isfile(os.path.join(repository, "trainers", START_UP))  # noqa: PTH113, PTH118
    return repository if is_ours else None


def trainers_folder() -> str:
    """The folder to name in nnUNet_extTrainer; the same from a wheel, an editable install and a
    source checkout.
    """
    parent = source_checkout() or os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    return os.path.join(parent, "trainers")  # noqa: PTH118


def with_ours(value: str) -> str:
    """`value` of nnUNet_extTrainer with our folder after what the user has put there; once."""
    folders = [folder for folder in value.split(os.pathsep) if folder.strip()]
    return value if trainers_folder() in folders else os.pathsep.join([*folders, trainers_folder()])


def add_trainers() -> None:
    """Let nnU-Net find our trainers in this process and those that it starts."""
    os.environ[VARIABLE] = with_ours(os.environ.get(VARIABLE, ""))


def shell_line(folders: Iterable[str]) -> str:
    """What to type for nnU-Net to find our trainers as well as those in `folders`."""
    import shlex  # not at each start of Python

    return f"export {VARIABLE}={shlex.quote(with_ours(os.pathsep.join(folders)))}"


def users_folders() -> list[str]:
    """Those that the variable names, without other copies of ours: nnU-Net takes the first trainer
    of a name.
    """
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [folder for folder in named if folder.strip() and not is_other_copy(folder)]


def is_other_copy(folder: str) -> bool:
    """Whether it holds the trainers of another copy of this package."""
    there = os.path.isfile(os.path.join(folder, "nnssl_swin_ssl.py"))  # noqa: PTH113, PTH118
    return there and folder != trainers_folder()
