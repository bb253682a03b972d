"""A training step does not wait for the device: no operation whose result the host must see to go
on, and no copy that it stands still for. Proven on a device that has no values at all.
"""

from __future__ import annotations

from pathlib import Path

import micro
import pytest
import torch
from accelerator import Waits
from torch.utils.data import default_collate

from nnssl.bench.lent import META, lent
from nnssl.methods import METHODS
from nnssl.modules.replay import HostPart
from nnssl.train.run import Run, RunConfig


def run_on(device: torch.device, name: str, settings: dict, dims: int = 3, **options) -> Run:
    method = micro.method(name, spatial_dims=dims, **settings)
    crops = micro.SyntheticCrops(method.region((32,) * dims))
    config = RunConfig(**{"steps": 6, "batch_size": 4, "workers": 0, "bf16": True, **options})
    return Run(method, crops, config, Path(), micro.header(name), device)


CASES = [
    *((name, {}) for name in METHODS),
    ("smit", {"patch_tokens": 3}),
    ("smit", {"mask_air": True, "decoder": "light"}),
    ("ibot", {"mask_chance": 1.0, "local_views": 2}),
    ("dino", {"local_views": 0}),
    ("mocov3", {"queue": 0}),
    ("simmim", {"visible_only": True}),
    ("smit", {"visible_only": True}),
    ("smit", {"teacher_views": 1, "w_parcels": 1.0, "classes": 3}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_waits_for_nothing(name: str, settings: dict) -> None:
    """Views, losses, gradients, clipping, optimiser, teacher and running means, in bf16."""
    with lent() as device:
        run, host, recorded = run_on(device, name, settings), HostPart(device), []
        for number in range(4):  # the first one makes what is made once
            first = 4 * number
            batch = default_collate([run.crops[first + i] | {"index": first + i} for i in range(4)])
            with Waits() as waits:
                views = run.prepare_views(batch)
                run.begin_step()
                waits.operations = []
                with host.recorded(captured=number > 1):
                    _, (monitored,) = run.backward([views], 1)
                    run.update()
                recorded.append(waits.operations)
                run.monitors.record(monitored)
            assert number == 0 or waits.found == {}
            if number > 1:
                host.again()
    assert run.step == 4
    # and behind the views it does the same with the same shapes and numbers, whatever the views,
    # on the device alone: a CUDA graph can hold it
    assert recorded[2] == recorded[3]
    assert {
        device_type for _, given, _ in recorded[3] for device_type, shape in given if shape
    } == {"meta"}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.masked_select(x > 0),
        lambda x: x.cpu(),
    ],
)
def test_what_needs_a_value_fails(wait) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta|unsupported"):
        wait(torch.randn(4, device=META))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.zeros(3).to(META),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: x.__setitem__(x > 0, 0.0),
        lambda x: x[torch.tensor([2, 0])],
    ],
)
def test_what_is_waited_for_is_counted(wait) -> None:
    with Waits() as waits:
        wait(torch.randn(4, device=META))
    assert sum(waits.found.values()) == 1


def test_a_tensor_made_of_numbers_on_the_device_is_refused() -> None:
    with lent(), pytest.raises(AssertionError, match="to_device"):
        torch.tensor([1.0, 2.0], device=META)
