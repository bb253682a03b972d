"""`--compile`: one compilation for the steps of a run, and none for what is looked at besides."""

from __future__ import annotations

import micro
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.data import default_collate

from nnssl.encoder.swin import Swin
from nnssl.train import pictures
from nnssl.train.log import Log

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs were made since; the compiler's own work is left out."""
    torch._dynamo.reset()
    counters.clear()
    original = torch.nn.Module.compile
    monkeypatch.setattr(Swin, "compile", lambda self, **how: original(self, backend="eager", **how))
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def test_pictures_and_the_probe_compile_nothing(tmp_path, monkeypatch, graphs) -> None:
    run = micro.run(tmp_path, "smit", compile=True, bf16=True, batch_size=2)
    monkeypatch.setattr(pictures, "progress", lambda *_: None)
    drawn = []
    monkeypatch.setattr(pictures, "views", lambda volumes, _: drawn.append(volumes))
    monkeypatch.setattr(pictures, "keep", lambda path, step: None)
    batch = default_collate([run.crops[0], run.crops[1]])

    def step() -> None:
        run.gradients([batch])
        run.update()

    step()
    step()
    before = graphs()
    assert before == 2  # the student's and the teacher's
    Log(run, print).draw()
    with run.evaluation_mode(), torch.no_grad():  # as the probe does
        run.method.encoder(torch.zeros(3, 1, 16, 16, 16))
    step()
    assert graphs() == before
    assert drawn
    assert run.method.training
