"""Two processes through gloo: the same run as one process with the same total batch, and errors
that end both.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from synthetic_scans import ct_array, write_volume
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from nnssl import checkpoint, dist
from nnssl.data import preprocess, survey
from nnssl.data.crops import Crops
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.modules.running import RunningMean, update_all
from nnssl.train import batches, cache, distributed, loop, pretrain
from nnssl.train.log import Log
from nnssl.train.loop import Interrupted, train
from nnssl.train.pretrain_options import Options
from nnssl.train.run import BEST, LATEST, Run

pytestmark = pytest.mark.usefixtures("one_thread")
WORLD, STEPS = 2, 3
ROWS = torch.arange(28.0).view(7, 4)
WAITING = [(0, False), (0, True), (1, False), (1, True)]  # which process waits, whether both hear
LONG = 600.0
POISONED = 6  # a sample of step 2 that only the second process gets


class Poisoned(micro.SyntheticCrops):
    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        if index == POISONED:
            sample["crop"].fill_(torch.nan)
        return sample


def watch_run(run: Run) -> dict:
    """Train; the losses, averaged gradients and centres (buffers) of each step, and the weights at
    the end.
    """
    recorded = {"losses": [], "gradients": [], "buffers": [], "norms": []}
    gradients, update = run.gradients, run.update

    def note_gradients(parts):
        losses, monitored = gradients(parts)
        recorded["losses"].append({k: float(dist.all_reduce_mean(v)) for k, v in losses.items()})
        recorded["gradients"].append(
            {n: p.grad.clone() for n, p in run.method.named_parameters() if p.grad is not None}
        )
        return losses, monitored

    def note_update():
        norm, rate = update()
        recorded["norms"].append(norm)
        recorded["buffers"].append({n: b.clone() for n, b in run.method.named_buffers()})
        return norm, rate

    run.gradients, run.update = note_gradients, note_update
    train(run, lambda _: None)
    recorded["weights"] = {
        n: v.clone() for n, v in run.method.state_dict().items() if torch.is_tensor(v)
    }
    recorded["embeddings"] = run.monitors.embeddings
    return recorded


def plain_run(folder: Path, accumulate: int = 1) -> Run:
    return micro.run(folder, steps=STEPS, accumulate=accumulate)


def start_of_a_run(folder: Path) -> tuple[list[str], bool]:
    """What PyTorch warns of, and whether the buffers are sent at each step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = plain_run(folder)
    return [str(warning.message) for warning in caught], run.model.will_sync_module_buffers()


def shared_head_run(folder: Path) -> Run:
    """iBOT: parameters under two names, and views of which some hide nothing."""
    return micro.run(folder, "ibot", {"local_views": 1}, steps=STEPS)


def poisoned_run(folder: Path) -> Run:
    run = micro.run(folder, steps=STEPS)
    run.crops = Poisoned(run.crops.shape)
    return run


def signalled_run(folder: Path, heard_by: tuple[int, ...]) -> tuple[str, int]:
    """Some processes hear SIGTERM after their first step; what is said, and how often it is
    saved.
    """
    run, writes = micro.run(folder, steps=STEPS), []
    update, write = run.update, checkpoint.write

    def updated():
        result = update()
        if dist.rank() in heard_by and run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    run.update = updated
    checkpoint.write = lambda *written: writes.append(written) or write(*written)
    try:
        train(run, lambda _: None)
    except Interrupted as stopped:
        return str(stopped), len(writes)
    finally:
        checkpoint.write = write
    return "not stopped", len(writes)


class Waiting(micro.SyntheticCrops):
    """The first batch of the second step never comes to process `rank`, which hears SIGTERM then;
    so does the other where `both`.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, both: bool) -> None:
        super().__init__(shape)
        self.rank, self.both = rank, both

    def __getitem__(self, index: int) -> dict:
        if index >= 4 and (self.both or dist.rank() == self.rank):
            micro.sigterm()
        if index >= 4 and dist.rank() == self.rank:
            time.sleep(LONG)
        return super().__getitem__(index)


def waiting_run(folder: Path, rank: int, both: bool) -> str:
    """How a run ends of which one process waits for data when it is to stop."""
    run = micro.run(folder, steps=STEPS)
    run.crops = Waiting(run.crops.shape, rank, both)
    try:
        train(run, lambda _: None)
    except Interrupted as stopped:
        return str(stopped)
    return "not stopped"


class EvaluatedBy:
    """In the place of a probe: it notes which process evaluates it, at each step."""

    dataset, cases = "Dataset007_Made", ["a", "b"]

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def due(self, step: int, steps: int) -> bool:
        return True

    def evaluate(
        self, encoder: torch.nn.Module, device: torch.device, bf16: bool
    ) -> dict[str, float]:
        self.ranks.append(dist.rank())
        return {"probe_dice": len(self.ranks) / 10}


def probed_run(folder: Path) -> dict:
    run = plain_run(folder)
    run.probe = EvaluatedBy()
    return watch_run(run) | {"ranks": run.probe.ranks}


def uneven_mean(parts: list[torch.Tensor]) -> torch.Tensor:
    mean = RunningMean(4, momentum=0.0)
    for rows in parts:
        mean.accumulate(rows)
    update_all(mean)
    return mean.value


def failed_preparation() -> str:
    def fail():
        raise ValueError("no scans")

    try:
        distributed.rank_zero_first(fail if dist.is_main() else lambda: "never called")
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def disagreement(value: object) -> str:
    try:
        distributed.require_same(value, micro.CPU, "they differ")
    except ValueError as error:
        return str(error)
    return "all the same"


def shared_preparation(folder: Path) -> dict:
    """Both prepare one folder, as two machines with a shared disk; the second has little memory."""
    done: list[str] = []
    inspect, store = survey.inspect_scan, preprocess.preprocess_case
    survey.inspect_scan = lambda *how: done.append("looked at") or inspect(*how)
    preprocess.preprocess_case = lambda *a, **how: done.append("stored") or store(*a, **how)
    out, said = folder / "prepared", []
    plan = distributed.rank_zero_first(
        lambda: prepare(PrepareRequest("made", out, [folder / "raw"], num_processes=0))
    )
    crops = Crops(out, plan, (8, 16, 16))
    cache.free_bytes = lambda _: 10**9 if dist.is_main() else 0
    cache.hold(crops, plan, "auto", micro.CPU, said.append)
    samples = torch.stack([crops[index]["crop"] for index in range(4)])
    return {"done": done, "plan": plan.fingerprint, "said": said[0], "samples": samples}


def as_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    Log.draw = lambda self: None
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    order = []
    found = {
        "alone": distributed.rank_zero_first(lambda: order.append(rank) or f"made by {rank}"),
        "failed": failed_preparation(),
        "done": distributed.rank_zero_first(lambda: order.append("again") or rank, lambda: 7),
        "same": disagreement(("a", [1, 2])),
        "different": disagreement(["a", rank]),
        "order": order,
        "least": dist.all_reduce_min(10 - rank, micro.CPU),
        "gathered": dist.all_gather(torch.full((2, 3), float(rank))),
        "mean": float(dist.all_reduce_mean(torch.tensor(float(rank)))),
        "uneven": uneven_mean([ROWS[:0], ROWS[:2]] if rank == 0 else [ROWS[2:3], ROWS[3:]]),
        "start": start_of_a_run(folder / "start"),
        "plain": watch_run(plain_run(folder / "plain")),
        "accumulated": watch_run(plain_run(folder / "accumulated", accumulate=2)),
        "ibot": watch_run(shared_head_run(folder / "ibot")),
        "poisoned": watch_run(poisoned_run(folder / "poisoned")),
        "signalled": signalled_run(folder / "signalled", (1,)),
        "both signalled": signalled_run(folder / "both", (0, 1)),
        "waiting": [waiting_run(folder / f"waiting{n}", *how) for n, how in enumerate(WAITING)],
        "probed": probed_run(folder / "probed"),
        "shared": shared_preparation(folder),
    }
    torch.save(found, folder / f"found{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    for number in range(2):
        write_volume(folder / "raw" / f"{number}.nii.gz", ct_array((14, 20, 24), number))
    mp.spawn(as_rank, args=(folder,), nprocs=WORLD)
    return folder, [
        torch.load(folder / f"found{rank}.pth", weights_only=False) for rank in range(WORLD)
    ]


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(Log, "draw", lambda self: None)


def assert_close(ours, theirs, what: str, **tolerance) -> None:
    torch.testing.assert_close(ours, theirs, msg=lambda text: f"{what}: {text}", **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "accumulated", "ibot", "poisoned"])
def test_two_processes_are_one_with_the_same_total_batch(found, kind, tmp_path, quiet):
    _, (first, second) = found
    one = watch_run(
        {"poisoned": poisoned_run, "ibot": shared_head_run}.get(kind, plain_run)(tmp_path)
    )
    for step in range(STEPS):
        if kind == "poisoned" and step == 1:
            continue
        for term, value in one["losses"][step].items():
            # Later steps stand on AdamW's first ones, which are signs: rounding near 0 counts
            # fully.
            assert first[kind]["losses"][step][term] == pytest.approx(
                value, rel=3e-2 if step else 1e-5
            ), (step, term)
        assert any(name.startswith("image_centre") for name in one["buffers"][step])
        for name, buffer in one["buffers"][step].items():
            close = {"rtol": 3e-2, "atol": 3e-2} if step else {"rtol": 1e-4, "atol": 1e-6}
            assert_close(
                first[kind]["buffers"][step][name], buffer, f"{name} of step {step}", **close
            )
    for name, gradient in one["gradients"][0].items():
        assert_close(first[kind]["gradients"][0][name], gradient, name, rtol=1e-3, atol=1e-5)
    for name, weight in one["weights"].items():
        distance = (first[kind]["weights"][name] - weight).float().norm()
        assert distance <= 2e-3 * weight.float().norm() + 1e-4, (name, distance)
    same_rows = zip(
        sorted(first[kind]["embeddings"].tolist()), sorted(one["embeddings"].tolist()), strict=True
    )
    assert all(ours == pytest.approx(theirs, rel=1e-3, abs=1e-4) for ours, theirs in same_rows)
    for name, weight in first[kind]["weights"].items():
        assert torch.equal(weight, second[kind]["weights"][name]), f"the processes differ in {name}"


def test_every_row_weighs_the_same_whichever_process_it_is_of(found):
    for result in found[1]:
        torch.testing.assert_close(result["uneven"], ROWS.mean(dim=0))


def test_a_bad_scan_of_one_process_stops_the_step_of_both(found):
    for result in found[1]:
        norms = [math.isfinite(norm) for norm in result["poisoned"]["norms"]]
        assert norms == [True, False, True]
        before, after = result["poisoned"]["buffers"][:2]
        assert all(torch.equal(buffer, after[name]) for name, buffer in before.items())
        assert all(weight.isfinite().all() for weight in result["poisoned"]["weights"].values())


@pytest.mark.parametrize(("kind", "name"), [("signalled", "signalled"), ("both signalled", "both")])
def test_a_signal_to_one_process_stops_both_after_the_same_step(found, kind, name):
    """To one or to both, as torchrun passes it on; the first of them saves, once."""
    folder, (first, second) = found
    said = "stopped at step 1 of 3; the same command with --c continues"
    assert first[kind] == (said, 1)
    assert second[kind] == (said, 0)
    assert (folder / name / LATEST).is_file()


@pytest.mark.parametrize("number", range(len(WAITING)))
def test_several_processes_of_which_one_waits_for_data_are_saved_and_end(found, number):
    folder, results = found
    said = "stopped at step 1 of 3; the same command with --c continues"
    assert [result["waiting"][number] for result in results] == [said, said]
    saved = checkpoint.read(folder / f"waiting{number}" / LATEST)
    assert saved["training_state"]["step"] == 1


def test_a_run_of_several_processes_starts_without_a_warning_and_sends_no_buffers(found):
    assert [rank["start"] for rank in found[1]] == [([], False)] * WORLD


def test_only_the_first_process_writes(found):
    folder, _ = found
    assert len((folder / "plain" / "log.jsonl").read_text().splitlines()) == STEPS


def test_the_first_process_alone_asks_the_probe_and_the_run_stays_the_same(found):
    folder, (first, second) = found
    assert first["probed"]["ranks"] == [0] * STEPS
    assert second["probed"]["ranks"] == []
    for result in (first, second):
        for name, weight in result["plain"]["weights"].items():
            assert torch.equal(result["probed"]["weights"][name], weight), name
    rows = [json.loads(line) for line in (folder / "probed" / "log.jsonl").read_text().splitlines()]
    assert [row["probe_dice"] for row in rows] == [0.1, 0.2, 0.3]
    assert (folder / "probed" / BEST).is_file()


def test_the_first_process_works_first_and_its_error_ends_all(found):
    _, (first, second) = found
    assert (first["alone"], second["alone"]) == ("made by 0", "made by 1")
    assert first["failed"] == "ValueError: no scans"
    assert second["failed"] == "RuntimeError: rank 0 failed: ValueError: no scans"


def on_two_machines(rank: int, folder: Path) -> None:
    """The second machine, of ranks 1 and 2, has a disk of its own."""
    os.environ["LOCAL_RANK"] = str(max(0, rank - 1))
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    disk = folder / f"disk{min(rank, 1)}"

    def work() -> str:
        with (folder / "order").open("a") as order:
            order.write(f"{rank} ")
        disk.write_text(f"by {rank}")
        return f"by {rank}"

    def fails() -> str:
        if rank == 1:
            raise ValueError("no scans")
        return "done"

    got = distributed.rank_zero_first(work, lambda: disk.read_text() if disk.exists() else None)
    try:
        failed = distributed.rank_zero_first(fails)
    except (ValueError, RuntimeError) as error:
        failed = f"{type(error).__name__}: {error}"
    torch.save([got, failed], folder / f"found{rank}.pth")
    distributed.destroy_process_group()


def test_a_machine_with_a_disk_of_its_own_prepares_once(tmp_path):
    """All its processes did the whole of it, at the same time and in the same folder."""
    mp.spawn(on_two_machines, args=(tmp_path,), nprocs=3)
    found = [torch.load(tmp_path / f"found{rank}.pth") for rank in range(3)]
    assert [got for got, _ in found] == ["by 0", "by 1", "by 1"]
    assert (tmp_path / "order").read_text() == "0 1 "
    others = "RuntimeError: rank 1 failed: ValueError: no scans"
    assert [failed for _, failed in found] == [others, "ValueError: no scans", others]


def test_what_is_done_is_not_done_again(found):
    _, (first, second) = found
    assert (first["done"], first["order"]) == (0, [0, "again"])
    assert (second["done"], second["order"]) == (7, [1])


def test_all_processes_learn_that_they_differ(found):
    for result in found[1]:
        assert result["same"] == "all the same"
        assert result["different"] == "they differ"


def test_a_collection_is_prepared_once_and_held_alike(found):
    first, second = (result["shared"] for result in found[1])
    assert first["done"] == ["looked at"] * 2 + ["stored"] * 2
    assert second["done"] == []
    assert first["plan"] == second["plan"]
    assert torch.equal(first["samples"], second["samples"])
    for result in (first, second):
        assert result["said"].startswith("cache: off")


def test_words_for_several_processes(found):
    for result in found[1]:
        assert result["least"] == 9
        assert result["mean"] == 0.5
        assert torch.equal(
            result["gathered"], torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 3)
        )


def test_the_words_cost_nothing_in_one_process():
    tensor = torch.ones(2)
    assert dist.all_reduce_mean(tensor) is tensor
    assert dist.all_gather(tensor) is tensor
    assert dist.all_reduce_min(3, micro.CPU) == 3
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    dist.barrier()
    distributed.destroy_process_group()


def test_devices(monkeypatch):
    assert distributed.choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.choose_device(None) == torch.device("cpu")
    with pytest.raises(
        ValueError, match="-device cuda is not available on this machine; available: cpu"
    ):
        distributed.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.choose_device(None) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 3 .* has no GPU: 2 can be seen.*-num_gpus 2"):
        distributed.choose_device("cuda")


FAILURE = ChildFailedError(
    "nnssl", {0: ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file="")}
)


@pytest.mark.parametrize(
    ("error", "ended"),
    [(None, "done"), (SignalException("stop", signal.SIGTERM), "stopped"), (FAILURE, "failed")],
)
def test_the_launcher_runs_the_same_command_and_tells_how_it_ended(monkeypatch, error, ended):
    started = []

    def run(arguments):
        started.append(arguments)
        if error:
            raise error

    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.launch(1, ["-m", "smit"]) is None
    assert started == []
    assert distributed.launch(3, ["-m", "smit", "-num_gpus", "3"]) == ended
    (line,) = started
    assert line.nproc_per_node == "3"
    assert line.standalone
    assert (line.module, line.training_script) == (True, "nnssl")
    assert line.training_script_args == ["pretrain", "-m", "smit", "-num_gpus", "3"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.launch(3, []) is None  # one of those that were launched
    assert len(started) == 1


def test_readers_by_machine(monkeypatch):
    assert batches.default_workers(torch.device("cpu")) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert batches.default_workers(torch.device("cuda")) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert batches.default_workers(torch.device("cuda")) == 1


def test_the_processes_of_other_machines_take_no_cores_of_this_one(monkeypatch):
    """Two machines of 4 GPUs and 32 cores: 8 cores for each process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr("nnssl.dist.world_size", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert batches.default_workers(torch.device("cuda")) == 7


def test_patience_is_enough_for_a_bad_scan_or_two():
    assert loop.PATIENCE >= 10


def test_srun_without_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        ValueError, match=r"srun started this command 4 times.*-num_gpus N.*torchrun"
    ):
        pretrain.pretrain(Options("smit", device="cpu"))
    monkeypatch.setenv("RANK", "0")
    distributed.require_one_launcher()


def test_srun_may_start_the_parts_of_a_preparation(monkeypatch):
    """Each does its own part, and no two train."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.delenv("RANK", raising=False)
    done = []
    monkeypatch.setattr(pretrain, "_pretrain", lambda options, *_: done.append(options.part_id))
    options = Options("smit", device="cpu", num_parts=4, part_id=3, only_prepare=True)
    pretrain.pretrain(options)
    assert done == [3]
    for other in (replace(options, only_prepare=False), replace(options, num_parts=1, part_id=0)):
        with pytest.raises(ValueError, match="srun started this command 4 times"):
            pretrain.pretrain(other)


def test_the_launcher_hears_what_torchrun_does_not(monkeypatch):
    heard = []
    monkeypatch.setattr(
        distributed.os, "kill", lambda pid, number: heard.append((pid == os.getpid(), number))
    )
    monkeypatch.setattr("torch.distributed.run.run", lambda _: signal.raise_signal(signal.SIGUSR1))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.launch(2, []) == "done"
    assert heard == [(True, signal.SIGTERM)]
