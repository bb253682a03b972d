"""A training step does not wait for the device: no operation whose result the host must see to go
on.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import micro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from nnssl.methods import METHODS
from nnssl.train.run import Run

PACKAGE = Path(__file__).resolve().parents[1] / "nnssl"
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
}


class Waits(TorchDispatchMode):
    """Counts, by file of this package, what would make the host wait if its tensors were on a
    GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = (
            args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        )
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in WAITING or by_mask:
            self.found[self._caller()] += 1
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _caller() -> str:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.parts[-3:-1] == ("torch", "autograd"):
                return "autograd"  # the gradient of something that waited itself
            if path.is_relative_to(PACKAGE):
                return path.relative_to(PACKAGE).as_posix()
            frame = frame.f_back
        return "autograd"


def step(run: Run) -> Counter[str]:
    """One step as `loop.train` makes it, after one that made what is made once."""
    batch = default_collate([run.crops[index] for index in range(run.config.batch_size)])
    for _ in range(2):
        with Waits() as waits:
            run.gradients([batch])
            run.update()
    return waits.found


# Views draw their chance on the CPU, where nothing waits. Of the rest these still wait for what a
# mask selects.
VIEWS = ("views/",)
KNOWN = {"modules/distillation.py", "modules/losses.py", "autograd"}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing(tmp_path, name: str) -> None:
    found = step(micro.run(tmp_path, name))
    ours = {
        file: count for file, count in found.items() if not file.startswith((*VIEWS, "methods/"))
    }
    assert set(ours) <= KNOWN, found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, 0.0),
    ],
)
def test_what_waits_is_seen(wait) -> None:
    with Waits() as waits:
        wait(torch.randn(4))
    assert sum(waits.found.values()) == 1
