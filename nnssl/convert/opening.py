"""Third-party files: opened without executing anything in them, and searched for an encoder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nnssl.checkpoint import KEYS, CheckpointError, read_plain
from nnssl.checkpoint.safe import is_safe, names_ours, read_safe
from nnssl.convert.layouts import LAYOUTS, WRAPPERS, LayoutMatch, find_encoders, guess

DEEPEST = 5  # wrappers within each other


class ForeignError(ValueError):
    """The file holds no encoder that ours can compute, or says too little about it; nothing was
    written.
    """


def opened(path: Path) -> object:
    """What a file of PyTorch or safetensors holds. Raises FileNotFoundError, CheckpointError."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    return _safetensors(path) if is_safe(path) else read_plain(path)


def is_ours(content: object) -> bool:
    """Whether what a file holds is a checkpoint of this package."""
    return isinstance(content, dict) and content.keys() >= KEYS


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises as `opened` and `tensors_in`."""
    return tensors_in(opened(path), path)


def tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    """All tensors by name of what `path` holds, from wherever in it its weights are.

    Raises ForeignError.
    """
    content = _unwrapped(content)
    values = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise _without_tensors(content, path)
    if odd := [name for name in tensors if not (isinstance(name, str) and name.isprintable())]:
        raise ForeignError(f"{path} holds tensors with invalid names: {odd[:3]!s:.300}")
    return tensors


def _without_tensors(content: object, path: Path) -> ForeignError:
    shown = list(content)[:10] if isinstance(content, dict) else type(content).__name__
    return ForeignError(
        f"{path} holds no tensors by name, but {shown!s:.300}; searched for them at the top and "
        f"under {', '.join(WRAPPERS)}"
    )


def _unwrapped(content: object) -> object:
    """What is under the keys that hold the weights, as deep as there are any."""
    for _ in range(DEEPEST):  # a dictionary may hold itself
        if not isinstance(content, dict):
            break
        inner = (content[key] for key in WRAPPERS if isinstance(content.get(key), dict))
        content = next(inner, content)
    return content


def _safetensors(path: Path) -> dict:
    """Tensors by name, or the content of a checkpoint of ours."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return read_safe(path) if names_ours(path) else load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, or not a safetensors file ({error})"
        ) from error


def encoder_in(path: Path, names: list[str], prefix: str | None) -> LayoutMatch:
    """The one encoder among `names`, or the one whose names begin with `prefix`. Raises
    ForeignError.
    """
    found = find_encoders(names)
    if not found:
        raise _unknown(path, names)
    meant = [each for each in found if prefix in (None, each.prefix)]
    if len(meant) != 1:
        raise _ambiguous(path, meant or found)
    return meant[0]


def _ambiguous(path: Path, found: list[LayoutMatch]) -> ForeignError:
    shown = ", ".join(repr(each.prefix) for each in found)
    return ForeignError(
        f"{path} holds {len(found)} encoder(s), with names that begin with {shown}: choose "
        "one with --prefix"
    )


def _unknown(path: Path, names: list[str]) -> ForeignError:
    known = ", ".join(layout.name for layout in LAYOUTS)
    tops = sorted({name.split(".")[0] for name in names})[:8]
    return ForeignError(
        f"{path} has no Swin encoder of a known layout: {guess(names)}. Its names begin with "
        f"{tops}; known layouts: {known}"
    )
