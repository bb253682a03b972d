"""Third-party files: opened without executing anything in them, and searched for an encoder."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nnssl.checkpoint import KEYS, CheckpointError, read_plain
from nnssl.checkpoint.safe import is_safe, names_ours, read_safe
from nnssl.convert import adapt
from nnssl.convert.layouts import (
    INDEX,
    LAYOUTS,
    OTHERS,
    SCALE,
    LayoutMatch,
    find_encoders,
    guess,
    is_v2,
)
from nnssl.encoder.windows import relative_index

PASSED_OVER = "in dictionaries without an encoder"
ROUNDING = 2**-8  # of numbers in bfloat16, relative
DEEPEST = 5  # dictionaries within each other that are searched


class FileTensors(NamedTuple):
    """What a file is converted from.

    named:       the tensors by name.
    passed_over: how many tensors are elsewhere in the file, such as in an optimiser's state.
    """

    named: dict[str, Tensor]
    passed_over: int

    @property
    def left_out(self) -> dict[str, int]:
        """Reason: tensors."""
        return {PASSED_OVER: self.passed_over} if self.passed_over else {}


class TensorDictionary(NamedTuple):
    prefix: str  # the keys that lead there, each with a dot
    tensors: dict[str, Tensor]  # directly in it; any key, until it is checked


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


def tensors_in(content: object, path: Path) -> FileTensors:
    """The tensors of what `path` holds, from the dictionary in it that has an encoder.

    Where several have one, such as a student's and a teacher's, from all of them, their names
    beginning with the keys that lead there. Raises ForeignError.
    """
    found = list(_dictionaries(content))
    if not found:
        raise _without_tensors(content, path)
    with_encoder = [each for each in found if find_encoders(filter(_is_name, each.tensors))]
    used = with_encoder or [max(found, key=lambda each: len(each.tensors))]
    for each in used:
        _require_names(each.tensors, path)
    named = used[0].tensors if len(used) == 1 else _by_whole_names(used)
    tensors = sum(len(each.tensors) for each in found)
    return FileTensors(named, tensors - sum(len(each.tensors) for each in used))


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isprintable()


def _require_names(tensors: dict[str, Tensor], path: Path) -> None:
    if odd := [name for name in tensors if not _is_name(name)]:
        raise ForeignError(f"{path} holds tensors with invalid names: {odd[:3]!s:.300}")


def _by_whole_names(used: list[TensorDictionary]) -> dict[str, Tensor]:
    return {each.prefix + name: tensor for each in used for name, tensor in each.tensors.items()}


def _without_tensors(content: object, path: Path) -> ForeignError:
    shown = list(content)[:10] if isinstance(content, dict) else type(content).__name__
    return ForeignError(
        f"{path} holds no tensors by name, but {shown!s:.300}; searched for them at the top and "
        f"in dictionaries, {DEEPEST} within each other"
    )


def _dictionaries(content: object) -> Iterator[TensorDictionary]:
    """Those in `content` that hold tensors themselves, each once: one may hold itself, or be there
    under two keys.
    """
    todo, seen = deque([("", 0, content)]), set()
    while todo:
        prefix, depth, values = todo.popleft()
        if not isinstance(values, dict) or id(values) in seen:
            continue
        seen.add(id(values))
        tensors = {name: tensor for name, tensor in values.items() if isinstance(tensor, Tensor)}
        if tensors:
            yield TensorDictionary(prefix, tensors)
        if depth < DEEPEST:
            todo += [(f"{prefix}{key}.", depth + 1, inner) for key, inner in values.items()]


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
    if is_v2(meant[0], names):
        raise ForeignError(f"{path} holds {OTHERS[SCALE]}")
    return meant[0]


def _ambiguous(path: Path, found: list[LayoutMatch]) -> ForeignError:
    shown = ", ".join(repr(each.prefix) for each in found)
    return ForeignError(
        f"{path} holds {len(found)} encoder(s), with names that begin with {shown}: choose "
        f"one with --prefix, such as --prefix {shlex.quote(found[0].prefix)}"
    )


def _unknown(path: Path, names: list[str]) -> ForeignError:
    known = ", ".join(layout.name for layout in LAYOUTS)
    tops = sorted({name.split(".")[0] for name in names})[:8]
    return ForeignError(
        f"{path} has no Swin encoder of a known layout: {guess(names)}. Its names begin with "
        f"{tops}; known layouts: {known}"
    )


def require_usual_indices(weights: adapt.Weights, buffers: dict[str, Tensor]) -> None:
    """Raises ForeignError when the rows of a bias table are not counted as in every Swin.

    weights: the encoder's, in our names. buffers: what the file holds next to them, and is left
    out. Tables of another part of the file, such as a head, do not matter.
    """
    dims = adapt.dims_of(weights)
    for name, table in weights.items():
        named = name.removesuffix(adapt.TABLE) + INDEX
        if name.endswith(adapt.TABLE) and named in buffers:
            _require_usual_index(named, buffers[named], adapt.window_of(table, dims), dims)


def _require_usual_index(name: str, index: Tensor, window: int, dims: int) -> None:
    if not _is_usual(index, window, dims):
        raise ForeignError(
            f"{name} is not that of a window of {window} in {dims}D: its bias table cannot be used"
        )


def _is_usual(index: Tensor, window: int, dims: int) -> bool:
    """The size comes first: the usual index of a window has edge ** (2 * dims) numbers."""
    if index.numel() != window ** (2 * dims) or not _is_stored_whole(index):
        return False
    usual = relative_index((window,) * dims, window, "exact")
    if index.is_floating_point():  # halved along with the weights, which rounds large numbers
        return torch.allclose(index.flatten().double(), usual.double(), rtol=ROUNDING, atol=0)
    return torch.equal(index.flatten().long(), usual)


def _is_stored_whole(tensor: Tensor) -> bool:
    """Whether the file holds all of its numbers; with a stride of 0 it need not."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.nbytes <= tensor.untyped_storage().nbytes()
