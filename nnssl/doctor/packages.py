"""What is installed, whether it can be imported, and whether it is recent enough."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version

from nnssl.conflict import OURS
from nnssl.doctor.finding import Finding, first_line, ok, wrong

OLDEST_PYTHON = (3, 10)
OLDEST_NNUNET = (2, 8, 0)  # the first release that looks for trainers outside its own folder
# the first whose weights_only=True executes nothing, whatever a checkpoint holds
OLDEST_TORCH = (2, 6, 0)
SLOW_TORCH = (2, 9)  # its 3D convolutions take several times as long; nnU-Net excludes it
PLAIN = {  # the rest of what setup.py asks for: what is imported, and what pip calls it
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "blosc2": "blosc2",
    "SimpleITK": "simpleitk",
    "nibabel": "nibabel",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "jinja2": "jinja2",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
}


def installed() -> list[Finding]:
    return [
        _python(),
        _torch(),
        _torchvision(),
        _nnunet(),
        *(_plain(*names) for names in PLAIN.items()),
        _own_package(),
    ]


def _python() -> Finding:
    says = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        return wrong(
            f"{says}: too old, 3.10 is needed",
            "python3.10 -m venv swin && source swin/bin/activate",
        )
    return ok(says)


def _own_package() -> Finding:
    found = _installed_version(OURS)
    return ok(f"{OURS} {found}" if found else f"{OURS}: not installed, running from its sources")


def _torch() -> Finding:
    found, error = _installed_version("torch"), _import("torch")
    if error:
        return wrong(_cannot("torch", found, error), "pip install torch torchvision")
    return _unfit_torch(found or "") or ok(f"torch {found}")


def _unfit_torch(found: str) -> Finding | None:
    """What is wrong with a version that can be imported; None where nothing is."""
    numbers = _version_numbers(found)
    if numbers and numbers < OLDEST_TORCH:
        says = (
            f"torch {found} is too old: {_dotted(OLDEST_TORCH)} is the first version that reads "
            "checkpoints safely"
        )
        return wrong(says, f'pip install -U "torch>={_dotted(OLDEST_TORCH)}" torchvision')
    if numbers[:2] == SLOW_TORCH:
        says = (
            f"torch {found}: its 3D convolutions are several times slower than in earlier and "
            "later versions"
        )
        return wrong(says, 'pip install -U "torch!=2.9.*" torchvision')
    return None


def _torchvision() -> Finding:
    """A CPU build of one beside a CUDA build of the other, which pip does not report."""
    found, error = _installed_version("torchvision"), _import("torchvision")
    if not error:
        return ok(f"torchvision {found}")
    says = (
        f"{_cannot('torchvision', found, error)}.\nnnU-Net then finds only its own default "
        f"trainer. torch is {_installed_version('torch')}: both must come from one index, built "
        "for the same device"
    )
    return wrong(says, "pip uninstall -y torch torchvision && pip install torch torchvision")


def _nnunet() -> Finding:
    found, remedy = (
        _installed_version("nnunetv2"),
        f'pip install -U "nnunetv2>={_dotted(OLDEST_NNUNET)}"',
    )
    if found and _version_numbers(found) < OLDEST_NNUNET:
        return wrong(
            (
                f"nnunetv2 {found} is too old: {_dotted(OLDEST_NNUNET)} is the first version that "
                "finds our trainers"
            ),
            remedy,
        )
    if error := _import("nnunetv2"):
        return wrong(_cannot("nnunetv2", found, error), remedy)
    return ok(f"nnunetv2 {found}")


def _plain(module: str, name: str) -> Finding:
    found = _installed_version(name)
    if error := _import(module):
        return wrong(_cannot(name, found, error), f"pip install {name}")
    return ok(f"{name} {found}")


def _cannot(name: str, found: str | None, error: str) -> str:
    return f"{name} {found} cannot be imported: {error}" if found else f"{name} is missing: {error}"


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _import(module: str) -> str | None:
    """Why it cannot be imported; None where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything while it is imported
        return first_line(error)
    return None


def _version_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
