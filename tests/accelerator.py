"""A device that is not the CPU, without a GPU: PyTorch's meta device, whose tensors have no values.

What asks it for a value fails, as a GPU would be waited for. What it lacks is lent to it: a
generator, the fused optimiser, and autocast, which does nothing here.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnssl.train import run

PACKAGE = Path(__file__).resolve().parents[1] / "nnssl"
META = torch.device("meta")


def lend(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, ready for a `Run`, until the test ends."""
    fused = (*run.FUSED, META.type)
    generator, autocast, tensor = torch.Generator, torch.autocast, torch.tensor

    def a_generator(device: torch.device | str = "cpu") -> torch.Generator:
        return generator("cpu" if torch.device(device) == META else device)

    def an_autocast(device: str, *args, **kwargs):
        return nullcontext() if device == META.type else autocast(device, *args, **kwargs)

    def a_tensor(*args, device: torch.device | str | None = None, **kwargs) -> Tensor:
        # made on the CPU and copied, which no dispatch mode sees
        assert torch.device(device or "cpu") != META, "it waits; make it on the CPU, then to_device"
        return tensor(*args, device=device, **kwargs)

    monkeypatch.setattr(torch, "tensor", a_tensor)
    monkeypatch.setattr(run, "FUSED", fused)
    where = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(where, "_get_fused_kernels_supported_devices", lambda: list(fused))
    monkeypatch.setattr(torch, "Generator", a_generator)
    monkeypatch.setattr(torch, "autocast", an_autocast)
    return META


class Waits(TorchDispatchMode):
    """Counts, by file of this package, what makes the host wait for the device: blocking copies to
    and from it, and indices that are on the CPU or boolean. What needs a value raises by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._waits(function.overloadpacket.__name__, args, kwargs):
            self.found[self._caller()] += 1
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
