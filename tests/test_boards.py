"""Weights & Biases, TensorBoard and the manifest beside a run's checkpoints."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import micro
import pytest
import torch
from commands import command

from nnssl import checkpoint, files
from nnssl.signals import Interrupted
from nnssl.train import boards, loop, manifest
from nnssl.train.pretrain import Options, pretrain
from nnssl.types import MANIFEST

pytestmark = pytest.mark.usefixtures("one_thread")
FAKE = """
calls = []

class Run:
    def __init__(self, options):
        self.step = 0 if options["resume"] == "never" else 3

    def log(self, row, step):
        calls.append((step, row))

    def finish(self):
        calls.append("finished")

def init(**options):
    calls.append(options)
    return Run(options)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package of that name that remembers what it is told."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for variable in (boards.ENABLED, boards.PROJECT, boards.MODE):
        monkeypatch.delenv(variable, raising=False)
    import wandb as fake

    yield fake
    sys.modules.pop("wandb", None)


def train_in_two_sittings(folder: Path, stop: int, **options: bool) -> None:
    """Four steps, stopped after step `stop` and resumed."""
    first = micro.run(folder, steps=4, **options)
    micro.stop_after(first, stop)
    with pytest.raises(Interrupted):
        loop.train(first, lambda _: None)
    again = micro.run(folder, steps=4, **options)
    again.resume()
    loop.train(again, lambda _: None)


def test_a_run_lands_in_nnunets_project_and_goes_on_there(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv(boards.PROJECT, "our_ct")
    monkeypatch.setenv(boards.MODE, "offline")
    folder = tmp_path / "ct" / "smit__micro"
    train_in_two_sittings(folder, 3, wandb=True)
    first, *rows, end, second, row, last = wandb.calls
    assert (first["project"], first["mode"], first["resume"]) == ("our_ct", "offline", "never")
    assert (first["name"], first["dir"]) == ("ct/smit__micro", str(folder))
    assert first["config"]["method"] == "smit"
    assert [step for step, _ in rows] == [1, 2, 3]
    assert {"total", "lr", "embedding_std"} <= set(rows[0][1])
    assert all(
        isinstance(value, float) for _, numbers in [*rows, row] for value in numbers.values()
    )
    assert (second["id"], second["resume"]) == (first["id"], "allow")
    assert (row[0], end, last) == (4, "finished", "finished")


def test_a_batch_that_cannot_be_divided_opens_no_board(wandb, tmp_path):
    """Nobody would close it."""
    with pytest.raises(ValueError, match="cannot be divided"):
        loop.train(micro.run(tmp_path, batch_size=3, accumulate=2, wandb=True), lambda _: None)
    assert wandb.calls == []


def test_a_resumed_run_keeps_the_row_that_it_starts_from_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_in_two_sittings(tmp_path, 2, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("total")] == [1, 2, 3, 4]


def test_rows_that_were_sent_before_a_fall_back_are_not_sent_again(wandb, tmp_path):
    run = micro.run(tmp_path, wandb=True)
    run.step = 1
    files.write_json(tmp_path / boards.NOTE, {"id": "ab12"})
    (board,) = boards.boards(run)
    for step in (2, 3):
        board.add({"total": 1.0, "step": step, "alarm": "words"}, step)
    assert wandb.calls[1:] == [(3, {"total": 1.0})]


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_what_is_not_installed_is_told_before_any_scan_is_read(
    by, nnunet_env, tmp_path, monkeypatch
):
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    if by == "variable":
        monkeypatch.setenv(boards.ENABLED, "1")
    options = Options("smit", [tmp_path / "no_scans_here"], device="cpu", wandb=by == "flag")
    with pytest.raises(ValueError, match=r"needs wandb: pip install .nnssl-swin\[wandb\]"):
        pretrain(options, lambda _: None)
    with pytest.raises(ValueError, match=r"--tensorboard needs .*nnssl-swin\[tensorboard\]"):
        boards.require_packages(tensorboard=True, wandb=False)


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """W&B itself leaves a folder `wandb` where it ran."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="needs wandb"):
        boards.require_packages(tensorboard=False, wandb=True)


def test_a_manifest_lies_beside_the_checkpoint_and_a_resumed_run_adds_its_sitting(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["/bin/nnssl_pretrain", "-m", "smit", "-i", "my scans"])
    stopped = micro.run(tmp_path, steps=4)
    micro.stop_after(stopped, 2)
    with pytest.raises(Interrupted):
        loop.train(stopped, lambda _: None)
    first = files.read_json(tmp_path / MANIFEST)
    assert (first["step"], first["steps"], len(first["sittings"])) == (2, 4, 1)
    again = micro.run(tmp_path, steps=4)
    again.resume()
    loop.train(again, lambda _: None)
    whole = files.read_json(tmp_path / MANIFEST)
    one, two = whole["sittings"]
    assert one == first["sittings"][0]
    assert [(s["from_step"], s["to_step"]) for s in (one, two)] == [(0, 2), (2, 4)]
    assert one["command"] == "nnssl_pretrain -m smit -i 'my scans'"
    assert one["versions"]["torch"] == torch.__version__.split("+")[0] or one["versions"]["torch"]
    assert one["hardware"]["device"] == "cpu"
    assert one["hardware"]["processes"] == 1
    assert whole["hours"] == pytest.approx(one["hours"] + two["hours"], abs=1e-4)
    assert whole["energy_wh"] is None
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_run_from_its_start_takes_no_sittings_of_what_was_there(tmp_path):
    files.write_json(tmp_path / MANIFEST, {"sittings": [{"hours": 99.0}]})
    manifest.Manifest(micro.run(tmp_path), print).write()
    assert len(files.read_json(tmp_path / MANIFEST)["sittings"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "3",
        "{}",
        '{"sittings": 3}',
        '{"sittings": [3]}',
        '{"sittings": [{"device_hours": 1.0}]}',
        '{"sittings": [{"hours": "1", "device_hours": 1.0}]}',
        '{"sittings": [{"hours": 1.0, "device_hours": 1.0, "energy_wh": "1"}]}',
    ],
)
def test_a_manifest_of_another_form_costs_one_warning(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    said: list[str] = []
    resumed = micro.run(tmp_path)
    resumed.step = 2
    run_manifest = manifest.Manifest(resumed, said.append)
    run_manifest.write(), run_manifest.write()
    (warning,) = said
    assert f"WARNING: {tmp_path / MANIFEST} is no manifest of ours" in warning
    (sitting,) = files.read_json(tmp_path / MANIFEST)["sittings"]
    assert sitting["from_step"] == 2


def test_a_manifest_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    said: list[str] = []
    run_manifest = manifest.Manifest(micro.run(tmp_path), said.append)

    def full(path, value):
        raise files.NoRoomError("the disk is full")

    monkeypatch.setattr(files, "write_json", full)
    run_manifest.write(), run_manifest.write()
    assert len(said) == 1
    assert "the disk is full" in said[0]


def test_energy_is_what_the_meters_of_the_gpus_rose(tmp_path, monkeypatch):
    readings = iter([7_200_000, 1_000, 14_400_000, 3_601_000])  # millijoules, two GPUs, twice
    meters = [lambda: next(readings)] * 2
    monkeypatch.setattr(manifest, "_meters", lambda device: meters)
    run_manifest = manifest.Manifest(micro.run(tmp_path), print)
    run_manifest.write()
    # (7.2 + 3.6) MJ in mJ / 1000 = 10800 J
    assert files.read_json(tmp_path / MANIFEST)["energy_wh"] == pytest.approx(3.0)


def test_a_driver_without_a_meter_costs_nothing(monkeypatch):
    broken = types.ModuleType("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", broken)  # nvmlInit is missing
    assert manifest._meters(torch.device("cuda", 0)) == []
    assert manifest._total_joules([lambda: 1 / 0]) is None


def test_inspect_says_the_same_as_json_with_the_manifest(tmp_path, capsys):
    run = micro.run(tmp_path, steps=1)
    loop.train(run, lambda _: None)
    path = tmp_path / "checkpoint_final.pth"
    assert command("nnssl_inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    saved = checkpoint.load(path)
    assert (found["sha256"], found["header"]) == (saved.sha256, saved.header)
    assert found["parameters"] == sum(tensor.numel() for tensor in saved.weights.values())
    assert found["manifest"]["sittings"][0]["to_step"] == 1
    (tmp_path / MANIFEST).unlink()
    assert command("nnssl_inspect", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["manifest"] is None
