"""`--graph`: a step is captured once and replayed, and computes what it would have."""

from __future__ import annotations

import micro
import pytest
import torch
from tape import Tape, capture
from torch.utils.data import default_collate

from nnssl.methods import METHODS
from nnssl.modules.replay import HostPart, number
from nnssl.train import graph
from nnssl.train.graph import StepGraph, why_not
from nnssl.train.run import Run

STEPS = 4  # two as they come, of which the second is recorded; two replayed
SETTINGS = [
    *((name, {}) for name in METHODS),
    ("simmim", {"visible_only": True, "mask_block": 8}),
    ("smit", {"teacher_views": 1, "drop_path": 0.2}),
    # the prototypes are set free while the graph is in use
    ("dino", {"freeze_prototypes": 0.6, "temperature_warmup": 1.0, "teacher_momentum": 0.9}),
]


def small_run(tmp_path, name: str, settings: dict) -> Run:
    return micro.run(tmp_path, name, settings=settings, steps=STEPS, batch_size=2)


def batch(run: Run, step: int) -> dict:
    return default_collate([run.crops[2 * step + i] | {"index": 2 * step + i} for i in range(2)])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_replayed_steps_are_those_of_the_run(tmp_path, monkeypatch, name, settings) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 2)
    said: list[str] = []
    plain, replayed = (small_run(tmp_path / kind, name, settings) for kind in ("plain", "graph"))
    steps = StepGraph(replayed, said.append, capture)
    for number_of_step in range(STEPS):
        wanted = plain.advance([batch(plain, number_of_step)])
        got = steps.step([batch(replayed, number_of_step)])
        assert got.rate == wanted.rate
        for term, value in wanted.losses.items():
            torch.testing.assert_close(got.losses[term], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.norm, wanted.norm, rtol=1e-4, atol=1e-6)
    assert said == []
    assert steps._replay is not None
    assert replayed.step == plain.step == STEPS
    assert replayed.skipped() == plain.skipped() == (0, 0)
    torch.testing.assert_close(replayed.monitors.embeddings, plain.monitors.embeddings)
    states = [run.method.state_dict() for run in (replayed, plain)]
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_a_step_that_cannot_be_captured_is_made_as_it_comes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 1)

    def fails(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    said: list[str] = []
    run = small_run(tmp_path, "simmim", {})
    steps = StepGraph(run, said.append, fails)
    monkeypatch.setattr(run, "update", lambda: (torch.zeros(()), 0.0))  # nothing runs in a capture
    for step in range(3):
        steps.step([batch(run, step)])
    assert len(said) == 1
    assert "not permitted when stream is capturing" in said[0]


def test_where_nothing_runs_after_a_failed_capture_the_command_is_named(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 1)
    run = small_run(tmp_path, "simmim", {})

    def fails(_):
        def broken():
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

        monkeypatch.setattr(run, "update", broken)
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = StepGraph(run, lambda _: None, fails)
    steps.step([batch(run, 0)])
    with pytest.raises(RuntimeError, match="the same command with --c, without --graph"):
        steps.step([batch(run, 1)])


def test_a_step_of_other_shapes_is_made_as_it_comes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 1)
    run = small_run(tmp_path, "simmim", {})
    steps = StepGraph(run, pytest.fail, capture)
    for step in range(2):
        steps.step([batch(run, step)])
    one = default_collate([run.crops[0] | {"index": 0}])
    assert steps.step([one]).losses["total"].isfinite()
    assert run.step == 3


def test_a_number_of_the_host_is_written_anew_for_each_replay() -> None:
    host, now = HostPart(torch.device("cpu")), [1.0]
    with host.recorded(captured=False):
        tensor = number(lambda: now[0])
    with host.recorded(captured=True), Tape() as tape:
        doubled = number(lambda: now[0]) * 2
    now[0] = 3.0
    host.again()
    tape.play()
    assert float(tensor) == 3
    assert float(doubled) == 6
    assert number(lambda: now[0]) == 3.0


def test_the_tape_notices_what_a_graph_would_not_hold() -> None:
    numbers = iter((1.0, 2.0))
    with Tape() as tape:
        kept = torch.ones(2) * next(numbers)
    tape.play()
    assert kept.tolist() == [1.0, 1.0]  # the host's second number is not seen
    with pytest.raises(RuntimeError, match="asks for a value"), Tape():
        float(torch.ones(2).sum())


@pytest.mark.parametrize(
    ("device", "accumulate", "said"), [("cpu", 1, "GPU"), ("cuda", 2, "--accumulate")]
)
def test_where_it_is_refused(device: str, accumulate: int, said: str) -> None:
    assert said in why_not(torch.device(device), accumulate)
    assert why_not(torch.device("cuda"), 1) == ""
