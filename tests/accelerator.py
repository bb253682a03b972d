"""What makes the host wait for a device, seen on PyTorch's meta device (`nnssl.bench.lent`)."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACKAGE = Path(__file__).resolve().parents[1] / "nnssl"


class Waits(TorchDispatchMode):
    """Counts, by file of this package, what makes the host wait for the device: blocking copies to
    and from it, and indices that are on the CPU or boolean. What needs a value raises by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.operations: list | None = None  # with tensors' places and numbers, while it is a list

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._waits(function.overloadpacket.__name__, args, kwargs):
            self.found[self._caller()] += 1
        if self.operations is not None:
            leaves = tree_leaves((args, kwargs))
            given = [(x.device.type, tuple(x.shape)) for x in leaves if isinstance(x, Tensor)]
            numbers = [x for x in leaves if isinstance(x, int | float)]
            self.operations.append((str(function), given, numbers))
        return function(*args, **kwargs)

    @staticmethod
    def _waits(name: str, args: tuple, kwargs: dict) -> bool:
        if name == "_to_copy":
            wanted = kwargs.get("device") or args[0].device
            across = torch.device(wanted).type != args[0].device.type
            return across and not kwargs.get("non_blocking")
        if name == "copy_":
            across = args[0].device.type != args[1].device.type
            return across and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and args[0].is_meta:
            given = [index for index in args[1] if isinstance(index, Tensor)]
            return any(not i.is_meta or i.dtype in (torch.bool, torch.uint8) for i in given)
        return False

    @staticmethod
    def _caller() -> str:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                return f"{path.relative_to(PACKAGE).as_posix()}:{frame.f_lineno}"
            frame = frame.f_back
        return "autograd"
