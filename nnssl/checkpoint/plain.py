"""Files of PyTorch that hold tensors and plain values: nothing in them is executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

SCRIPT = "constants.pkl"  # a record that only TorchScript has
MAGIC = b"PK\x03\x04"  # by which PyTorch's reader knows its archives
MOST_TIED = 2  # names of one tensor, such as of a network that uses a layer twice
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # how it names a class or function that it refuses


class CheckpointError(ValueError):
    """The file is not a checkpoint of this package, is damaged, or holds invalid weights."""


def read_plain(path: Path) -> object:
    """The content of a PyTorch file, if it is tensors and plain values only.

    Numbers of numpy become Python's. Raises CheckpointError.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([*_NUMPY]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the reader of pickles raises on noise has no common class
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that PyTorch's reader refused."""
    if refused := GLOBAL.search(str(error)):
        return CheckpointError(
            f"{path} cannot be read as a checkpoint: it holds more than tensors and plain values, "
            f"namely {refused[1]}, which would have to be executed. Ask its author for a file of "
            "tensors only: torch.save(model.state_dict(), FILE)"
        )
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is truncated, damaged, or holds more than "
        f"tensors and plain values ({type(error).__name__}). Copy it again from its "
        "source"
    )


def why_no_weights(tensor: object) -> str | None:
    """Why something is not a tensor of weights; None for a dense, floating, finite one."""
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if not _is_dense_floating(tensor):
        return (
            f"is a {tensor.device.type} tensor of {tensor.dtype}, {tensor.layout}; weights are "
            "dense floating numbers"
        )
    if not _is_held(tensor):
        return f"claims {tensor.numel()} numbers, of which the file holds fewer"
    return None if torch.isfinite(tensor.float()).all() else "holds NaN or infinite values"


def why_inflated(tensors: Iterable[object]) -> str | None:
    """Why tensors would take much more memory than what holds them; None where they do not.

    Many tensors may be views of one storage. In half precision each would become a copy.
    """
    dense = [each for each in tensors if isinstance(each, Tensor) and _is_held(each)]
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in dense}
    claimed, stored = sum(each.nbytes for each in dense), sum(held.values())
    if claimed <= MOST_TIED * stored:
        return None
    return f"claim {claimed} bytes together, of which the file holds {stored}"


def _is_held(tensor: Tensor) -> bool:
    """Whether the file holds all numbers of a dense one; with a stride of 0 it need not."""
    return _is_dense_floating(tensor) and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _is_dense_floating(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.is_floating_point()


def printable(text: object) -> str:
    """On one line, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _check_archive(path: Path) -> None:
    """Raises CheckpointError for a damaged archive, or one that PyTorch did not write.

    PyTorch's reader compares no checksum, so that a flipped bit would be a wrong weight. PyTorch
    compresses nothing, so nothing has to be unpacked here: a compressed record may be a
    decompression bomb.
    """
    if not _is_archive(path):
        return  # PyTorch before 1.6, or no file of it: its reader will tell
    is_torch, damaged = _tested(path)
    if not is_torch:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: PyTorch did not write it: its records are "
            "compressed, overlap or share a name. Save it again with torch.save"
        )
    if damaged is not None:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged: the checksum of "
            f"{printable(damaged)} does not match. Copy it again from its source"
        )


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _tested(path: Path) -> tuple[bool, str | None]:
    """Whether PyTorch wrote the archive, and the first of its records that is damaged. Raises
    CheckpointError for TorchScript.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_script(archive, path)
            is_torch = _is_torch(archive, path.stat().st_size)
            return is_torch, archive.testzip() if is_torch else None
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or damaged "
            f"({printable(error)}). Copy it again from its source"
        ) from error


def _refuse_script(archive: zipfile.ZipFile, path: Path) -> None:
    if any(name.endswith(f"/{SCRIPT}") for name in archive.namelist()):
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is a TorchScript archive (torch.jit.save), "
            "which holds code that would have to be executed. Ask its author for a file of tensors "
            "only: torch.save(model.state_dict(), FILE)"
        )


def _is_torch(archive: zipfile.ZipFile, size: int) -> bool:
    """Whether the records are as PyTorch writes them: stored, one after another, each name once."""
    records = archive.infolist()
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    disjoint = sum(record.file_size for record in records) <= size
    return stored and disjoint and len({record.filename for record in records}) == len(records)


Order = Literal["<", ">", "=", "|"]  # of bytes, as numpy's


class _DType:
    """Stands in for numpy.dtype in a file."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise ValueError("not the type of a number")
        self.code = code
        self.order: Order = "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in get_args(Order):
            raise ValueError("not an order of bytes")
        self.order = cast("Order", state[1])


def _numpy_scalar(dtype: _DType, content: bytes) -> float | int | bool:
    """Stands in for numpy's maker of scalars: others keep scores beside their weights."""
    if not isinstance(dtype, _DType) or not isinstance(content, bytes):
        raise ValueError("not a number of numpy")
    return np.frombuffer(content, np.dtype(dtype.code).newbyteorder(dtype.order))[0].item()


_NUMPY = (
    (_DType, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),  # numpy 2
)
