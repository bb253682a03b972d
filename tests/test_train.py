"""The training loop: exact resume, accumulation, bad gradients, what is written, schedules,
capacity.
"""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import micro
import pytest
import torch
from micro import sigterm, stop_after
from torch import nn
from torch.utils.data import default_collate

from nnssl import checkpoint, dist
from nnssl.methods.method import MethodConfig, Step
from nnssl.modules.running import discard_all, update_all
from nnssl.train import batches, build, capacity, earlier_run, loop
from nnssl.train.graph import StepResult
from nnssl.train.learning_rate import learning_rate, parameter_groups
from nnssl.train.log import LOG, Log
from nnssl.train.loop import Interrupted, train
from nnssl.train.monitors import PATIENCE, Monitors
from nnssl.train.pretrain_options import DEFAULT_STEPS, Options
from nnssl.train.run import FINAL, LATEST, Diverged, Run, RunConfig
from nnssl.train.stopping import Signals

pytestmark = pytest.mark.usefixtures("one_thread", "_no_pictures")
TIMINGS = {"samples_per_second", "data_wait"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def _no_pictures(request, monkeypatch):
    """Drawing takes longer than ten steps; the tests of pictures ask for them by name."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(Log, "draw", lambda self: None)


def silent(_: str) -> None:
    pass


def rows(folder: Path) -> list[dict]:
    """The log without what the clock says."""
    lines = (folder / LOG).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def everything(run: Run) -> dict:
    """All tensors and numbers of a run: weights, teacher, heads, decoder, centres, progress,
    AdamW's moments.
    """
    optimizer = {
        f"{group}.{number}.{name}": value
        for group, states in (("state", run.optimizer.state_dict()["state"]),)
        for number, state in states.items()
        for name, value in state.items()
    }
    return {
        **run.method.state_dict(),
        **optimizer,
        "embeddings": run.monitors.embeddings,
        "step": run.step,
    }


def assert_same(first: dict, second: dict, **tolerance) -> None:
    """Bit for bit, or within `tolerance`."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if torch.is_tensor(value) and tolerance:
            torch.testing.assert_close(
                value, second[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )
        else:
            same = (
                torch.equal(value, second[name])
                if torch.is_tensor(value)
                else value == second[name]
            )
            assert same, name


class Poisoned(micro.SyntheticCrops):
    """SyntheticCollection crops of which some hold a value that is not finite."""

    def __init__(self, shape, bad: set[int], value: float = math.nan) -> None:
        super().__init__(shape)
        self.bad, self.value = bad, value

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        if index in self.bad:
            sample["crop"].fill_(self.value)
        return sample


# -- resume ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": 1}, {"workers": 0, "accumulate": 2, "log_every": 2}],
    ids=str,
)
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(tmp_path, options):
    settings = {"drop_path": 0.3}  # chance in the loss too
    whole = micro.run(tmp_path / "whole", settings=settings, **options)
    train(whole, silent)

    first = micro.run(tmp_path / "parts", settings=settings, save_every=2, **options)
    stop_after(first, 3, sigterm)
    with pytest.raises(Interrupted, match=r"step 3 of 6.*--c continues"):
        train(first, silent)
    assert not (tmp_path / "parts" / FINAL).exists()

    second = micro.run(tmp_path / "parts", settings=settings, save_every=2, **options)
    with torch.no_grad():
        for parameter in second.method.parameters():
            parameter.zero_()  # all that matters comes from the file
    second.resume()
    assert second.step == 3
    train(second, silent)

    assert_same(everything(whole), everything(second))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    final = [checkpoint.read(tmp_path / name / FINAL) for name in ("whole", "parts")]
    assert_same(final[0]["network_weights"], final[1]["network_weights"])


def test_a_run_that_was_killed_goes_on_from_its_last_save(tmp_path):
    whole = micro.run(tmp_path / "whole")
    train(whole, silent)

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    first = micro.run(tmp_path / "parts", save_every=2)
    stop_after(first, 4, kill)  # after the save of step 2; the row of step 3 is already in the log
    with pytest.raises(Killed):
        train(first, silent)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3]
    with (tmp_path / "parts" / LOG).open("a") as log:
        log.write('{"step": 4, "tot')  # a row that was being written

    second = micro.run(tmp_path / "parts", save_every=2)
    second.resume()
    assert second.step == 2
    train(second, silent)
    assert_same(everything(whole), everything(second))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def finished_again(folder: Path) -> Run:
    """The command typed again with --c, on another day."""
    run = micro.run(folder, steps=2)
    run.header["created"] = "2000-01-02"
    run.resume()
    train(run, silent)
    return run


def test_a_finished_run_is_finished_again_without_a_step(tmp_path):
    first = micro.run(tmp_path, steps=2)
    train(first, silent)
    again = finished_again(tmp_path)
    assert_same(everything(first), everything(again))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_finished_run_that_is_typed_again_keeps_the_file_that_plans_have_pinned(tmp_path):
    final = tmp_path / FINAL
    train(micro.run(tmp_path, steps=2), silent)
    before = final.read_bytes()
    finished_again(tmp_path)
    assert final.read_bytes() == before
    final.unlink()
    finished_again(tmp_path)
    assert checkpoint.load(final).header["created"] == "2000-01-02"


@pytest.mark.parametrize("what", ["damaged", "of another step", "of another run"])
def test_a_final_checkpoint_that_is_not_the_runs_is_written_again(tmp_path, what):
    train(micro.run(tmp_path, steps=2), silent)
    final = tmp_path / FINAL
    content = checkpoint.read(final)
    if what == "damaged":
        final.write_bytes(final.read_bytes()[:-100])
    elif what == "of another step":
        content["header"]["step"] = 1
        checkpoint.write(final, content)
    else:
        next(iter(content["network_weights"].values()))[0] += 1
        checkpoint.write(final, content)
    run = finished_again(tmp_path)
    loaded = checkpoint.load(final)
    assert (loaded.header["step"], loaded.header["created"]) == (2, "2000-01-02")
    assert_same(loaded.part(checkpoint.PREFIX), dict(run.method.encoder.state_dict()))


def test_the_same_training_gives_the_same_bytes_also_with_a_stop(tmp_path):
    """Not those of checkpoint_latest.pth: it may be saved at other steps."""
    for name in ("one", "two"):
        train(micro.run(tmp_path / name, steps=4), silent)
    stopped = micro.run(tmp_path / "three", steps=4)
    stop_after(stopped, 2, sigterm)
    with pytest.raises(Interrupted):
        train(stopped, silent)
    second = micro.run(tmp_path / "three", steps=4)
    second.resume()
    train(second, silent)
    one, two, three = ((tmp_path / name / FINAL).read_bytes() for name in ("one", "two", "three"))
    assert one == two == three


def edited_latest(folder: Path, edit) -> None:
    content = checkpoint.read(folder / LATEST)
    edit(content)
    checkpoint.write(folder / LATEST, content)


def test_a_run_from_before_a_setting_was_known_continues_with_it_as_it_was_then(tmp_path):
    then = MethodConfig.BEFORE["clip_norm"]
    train(micro.run(tmp_path, steps=2, settings={"clip_norm": then}), silent)
    edited_latest(tmp_path, lambda content: content["header"]["method_config"].pop("clip_norm"))
    with pytest.raises(ValueError, match=f"clip_norm: was {then}, now 1.0"):
        micro.run(tmp_path, steps=2).resume()
    run = micro.run(tmp_path, steps=3, settings={"clip_norm": then})
    run.resume()
    train(run, silent)
    assert checkpoint.load(tmp_path / FINAL).header["method_config"]["clip_norm"] == then


def test_another_method_is_refused_before_its_settings_are_compared(tmp_path):
    train(micro.run(tmp_path, steps=1), silent)
    with pytest.raises(ValueError, match="cannot be continued") as error:
        micro.run(tmp_path, "ibot", {"local_views": 1}, steps=1).resume()
    assert "these:\n  method: was smit, now ibot\nUse the original" in str(error.value)


def test_a_checkpoint_without_training_state_is_named_with_the_remedy(tmp_path):
    train(micro.run(tmp_path, steps=1), silent)
    (tmp_path / LATEST).write_bytes((tmp_path / FINAL).read_bytes())
    with pytest.raises(ValueError, match=r"latest.pth holds no training state.*Restore.*--from"):
        micro.run(tmp_path, steps=1).resume()


def test_other_settings_are_refused_on_resume(tmp_path):
    train(micro.run(tmp_path, steps=2), silent)
    for change, message in (
        ({"settings": {"lr": 1e-5}}, "lr: was 0.0006, now 1e-05"),
        ({"settings": {"mask_ratio": 0.5}}, "mask_ratio: was 0.7, now 0.5"),
        ({"seed": 1}, "seed: was 0, now 1"),
    ):
        with pytest.raises(ValueError, match="cannot be continued") as error:
            micro.run(tmp_path, **{"steps": 2, **change}).resume()
        assert message in str(error.value)
        assert "start again in another folder with -o" in str(error.value)


def test_how_a_run_is_watched_may_change_on_resume(tmp_path):
    train(micro.run(tmp_path, steps=2), silent)
    run = micro.run(tmp_path, steps=2, log_every=7, save_every=3, workers=1, tensorboard=True)
    assert run.resume() == []  # nothing to report
    assert run.step == 2


@pytest.mark.parametrize(
    ("there", "resume", "message"),
    [
        ([LATEST], False, "already holds a run.*--c to continue.*-o"),
        ([FINAL], False, "already holds a run"),
        ([FINAL], True, "finished run.*without checkpoint_latest.pth"),
        ([LATEST, FINAL], True, None),
        ([LATEST], True, None),
        ([], False, None),
        ([], True, None),
    ],
)
def test_a_run_is_never_overwritten(tmp_path, there, resume, message):
    for name in there:
        (tmp_path / name).touch()
    if message is None:
        earlier_run.require_free(tmp_path, resume)
    else:
        with pytest.raises(ValueError, match=message):
            earlier_run.require_free(tmp_path, resume)


# -- accumulation and the order of samples ---------------------------------------------


def test_what_is_monitored_is_the_mean_over_the_parts_of_a_step(tmp_path):
    run = micro.run(tmp_path, "simclr", steps=2, accumulate=2)
    samples = batches.MicroBatches(0, 1, run.config.batch_size, 2)
    parts = [default_collate([run.crops[index] for index in part]) for part in samples]
    run.begin_step()
    _, (first, second) = run.backward(map(run.prepare_views, parts), 2)
    _, found = run.gradients(parts)
    assert float(first["accuracy"]) != float(second["accuracy"])
    mean = (first["accuracy"] + second["accuracy"]) / 2
    torch.testing.assert_close(found["accuracy"], mean)
    assert torch.equal(found["embedding"], second["embedding"])


def test_accumulation_gives_what_one_large_batch_gives(tmp_path):
    runs = [micro.run(tmp_path / str(parts), steps=2, accumulate=parts) for parts in (1, 2, 4)]
    for parts, run in zip((1, 2, 4), runs, strict=True):
        samples = batches.MicroBatches(0, 1, run.config.batch_size, parts)
        run.gradients([default_collate([run.crops[index] for index in part]) for part in samples])
    whole = dict(runs[0].method.named_parameters())
    # gradients, not weights: AdamW's first steps are signs, and count rounding near 0 fully
    for run in runs[1:]:
        for name, parameter in run.method.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, whole[name].grad, rtol=1e-3, atol=1e-6)
    for run in runs:
        discard_all(run.method)
        run.monitors = Monitors()
        train(run, silent)
    for parts in (2, 4):
        for one, several in zip(rows(tmp_path / "1"), rows(tmp_path / str(parts)), strict=True):
            for term in ("total", "mip", "itd", "mpd", "grad_norm", "embedding_std"):
                rel = 1e-2 if term == "grad_norm" else 1e-3  # rounding, after steps of Adam's
                assert several[term] == pytest.approx(one[term], rel=rel), term
            assert several["rejected"] == one["rejected"]


@pytest.mark.parametrize(
    ("world", "accumulate", "start"), [(1, 1, 0), (2, 1, 0), (2, 3, 2), (4, 1, 1)]
)
def test_every_sample_of_a_step_goes_to_one_process(monkeypatch, world, accumulate, start):
    by_step = {step: [] for step in range(start, 4)}
    for rank in range(world):
        monkeypatch.setattr(dist, "world_size", lambda: world)
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        micro_batches = batches.MicroBatches(start, steps=4, batch_size=12, accumulate=accumulate)
        batch_list = list(micro_batches)
        assert len(batch_list) == len(micro_batches) == (4 - start) * accumulate
        for number, part in enumerate(batch_list):
            by_step[start + number // accumulate] += part
    assert {step: sorted(samples) for step, samples in by_step.items()} == {
        step: list(range(12 * step, 12 * (step + 1))) for step in range(start, 4)
    }


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"total batch of 9 .* 2 processes x 3 .* multiple of 6"):
        batches.MicroBatches(0, 1, batch_size=9, accumulate=3)


def test_readers_do_not_change_the_order():
    crops = micro.SyntheticCrops((8, 8, 8))
    order = []
    for workers in (0, 2):
        sampler = batches.MicroBatches(1, 5, batch_size=2, accumulate=1)
        order.append(
            [b["index"].tolist() for b in batches.loader(crops, sampler, workers, pin_memory=False)]
        )
    assert order[0] == order[1] == [[2, 3], [4, 5], [6, 7], [8, 9]]


@pytest.mark.parametrize("field", ["steps", "batch_size", "accumulate", "log_every", "save_every"])
def test_numbers_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        RunConfig(**{"steps": 1, "batch_size": 1, field: 0})


# -- gradients that are not finite -----------------------------------------------------


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if "WARNING" in line]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_moves_nothing_and_the_run_goes_on(tmp_path, value):
    said = []
    # a window would make infinity finite
    run = micro.run(tmp_path, steps=4, settings={"window_jitter": 0.0})
    run.crops = Poisoned(run.crops.shape, bad={5}, value=value)  # in step 2 of batches of 4
    states = {}
    for step in (1, 2):
        stop_after(
            run,
            step,
            lambda s=step: states.update({s: {k: _copy(v) for k, v in everything(run).items()}}),
        )
    train(run, said.append)
    clocks = ("step", "embeddings", "_extra_state")  # the schedules continue
    kept = {k: v for k, v in states[1].items() if k not in clocks}
    assert_same(kept, {k: states[2][k] for k in kept})
    (warning,) = warnings(said)
    assert "gradient of step 2 is not finite" in warning
    assert "--set lr=1e-4" in warning
    assert [row["step"] for row in rows(tmp_path)] == [1, 3, 4]
    assert all(math.isfinite(v) for row in rows(tmp_path) for v in row.values())
    for name in (LATEST, FINAL):
        assert all(
            w.isfinite().all() for w in checkpoint.read(tmp_path / name)["network_weights"].values()
        )


def test_skipped_steps_between_two_rows_of_the_log_are_told_at_the_next(tmp_path):
    said = []
    run = micro.run(tmp_path, steps=6, log_every=3, settings={"window_jitter": 0.0})
    run.crops = Poisoned(run.crops.shape, bad={5, 22})  # in steps 2 and 6 of batches of 4
    train(run, said.append)
    first, last = warnings(said)
    assert "1 of the steps up to step 3 had a gradient that is not finite and were skipped" in first
    assert "gradient of step 6 is not finite" in last
    assert [row["step"] for row in rows(tmp_path)] == [3]


def test_seconds_are_means_over_the_steps_since_the_last_row(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 3.0, 5.0, 8.0])  # begun, two waits, read
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(now))
    clock = loop._Clock()
    for _ in range(2):
        with clock.waiting():
            pass
        clock.steps += 1
    assert clock.read() == {"seconds": 4.0, "waited": 1.5}


def _copy(value):
    return value.clone() if torch.is_tensor(value) else value


def test_a_run_gives_up_when_no_gradient_is_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 3)
    said = []
    run = micro.run(tmp_path, steps=20, save_every=2)
    run.crops = Poisoned(run.crops.shape, bad=set(range(12, 999)))  # from step 4 on
    with pytest.raises(
        Diverged, match="no finite gradient for 3 steps in a row, up to step 6"
    ) as error:
        train(run, said.append)
    assert "report.csv" in str(error.value)
    assert len(warnings(said)) == 2  # at the first and at the last
    assert not (tmp_path / FINAL).exists()
    last = checkpoint.read(tmp_path / LATEST)
    assert last["training_state"]["step"] in (2, 4)
    assert all(w.isfinite().all() for w in last["network_weights"].values())


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    run = micro.run(tmp_path, steps=2)
    train(run, silent)
    before = (tmp_path / LATEST).read_bytes()
    with torch.no_grad():
        # not the encoder's: only the training state would hold it
        for parameter in run.method.decoder.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(Diverged, match=r"^decoder\..* is not finite; nothing was written"):
        run.save({})
    with torch.no_grad():
        next(iter(run.method.encoder.parameters())).fill_(math.inf)
    with pytest.raises(checkpoint.CheckpointError, match="nothing was written"):
        run.finish({})
    assert (tmp_path / LATEST).read_bytes() == before


# -- what is said and written ----------------------------------------------------------


def test_rows_of_the_log(tmp_path):
    train(micro.run(tmp_path, steps=5, log_every=2), silent)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    wanted = {
        "step",
        "epoch",
        "total",
        "mip",
        "itd",
        "mpd",
        "lr",
        "grad_norm",
        "samples_per_second",
        "data_wait",
        "rejected",
        "embedding_std",
        "rankme",
        "entropy_image",
        "spread_image",
        "used_image",
        "entropy_patch",
        "spread_patch",
        "used_patch",
    }
    assert all(set(line) == wanted for line in lines)
    assert lines[0]["epoch"] == pytest.approx(2 * 4 / 6, abs=1e-3)
    # of the samples of step 2
    assert lines[0]["rejected"] == sum(index % 3 for index in range(4, 8)) / 4
    assert 0 <= lines[0]["data_wait"] <= 1
    last = checkpoint.load(tmp_path / FINAL).header
    assert last["metrics"] == {k: v for k, v in lines[-1].items() if k not in TIMINGS}
    assert last["step"] == 5


def test_a_new_run_in_a_folder_without_a_checkpoint_starts_a_new_log(tmp_path):
    (tmp_path / LOG).write_text('{"step": 1, "total": 9.0}\n{"step": 2, "total": 9.0}\n')
    train(micro.run(tmp_path, steps=1), silent)
    assert [row["step"] for row in rows(tmp_path)] == [1]
    assert rows(tmp_path)[0]["total"] != 9.0


def test_a_collapse_that_lasts_is_said_once_and_loudly(tmp_path):
    said = []
    run = micro.run(tmp_path)
    log = Log(run, said.append)
    monitored = {"embedding": torch.ones(8, 4), "teacher_image": torch.full((8, 16), 1 / 16)}
    written = []
    for step in range(1, PATIENCE + 4):
        run.step = step
        run.monitors.record(monitored)
        result = StepResult({"total": torch.ones(())}, monitored, torch.ones(()), rate=1e-4)
        written.append(log.row(result, seconds=1.0, waited=0.0, rejected=0))
    (warning,) = warnings(said)
    assert f"WARNING at step {PATIENCE}: this run may have collapsed: " in warning
    assert "all crops look alike" in warning
    assert "no information" in warning
    assert "--set" in warning
    assert ["alarm" in row for row in written] == [False] * (PATIENCE - 1) + [True] + [False] * 3
    assert written[PATIENCE - 1]["alarm"] == rows(tmp_path)[PATIENCE - 1]["alarm"]


def test_pictures_are_drawn(tmp_path):
    run = micro.run(tmp_path, steps=3)
    train(run, silent)
    for name in ("progress.png", "views.png"):
        assert (tmp_path / name).read_bytes()[:8] == PNG
    assert run.method.training
    assert not run.method.teacher.training


def test_pictures_of_a_method_without_voxels_show_what_it_sees(tmp_path):
    run = micro.run(tmp_path, steps=1, settings={"w_mip": 0.0})
    train(run, silent)
    assert {path.name for path in tmp_path.iterdir()} == {
        LOG,
        LATEST,
        FINAL,
        "manifest.json",
        "progress.png",
        "views",
        "views.png",
    }


def test_a_show_of_pictures_that_fails_leaves_nothing_behind_that_would_move_a_centre(tmp_path):
    run = micro.run(tmp_path)
    views = micro.views(run.method)

    def show(_: dict) -> dict:
        run.method(views)
        raise RuntimeError("out of memory")

    run.method.show = show
    before = {k: _copy(v) for k, v in run.method.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"):
        Log(run, silent).draw()
    assert run.method.training
    update_all(run.method)
    assert_same(before, dict(run.method.state_dict()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_monitored_number_that_is_not_finite_does_not_end_the_run(tmp_path, value):
    run = micro.run(tmp_path, steps=2, save_every=1)
    loss = run.method.loss

    def with_overflow(views: dict) -> Step:
        out = loss(views)
        return Step(out.losses, {**out.monitored, "overflown": torch.tensor(value)})

    run.method.loss = with_overflow
    train(run, silent)
    metrics = checkpoint.load(tmp_path / FINAL).header["metrics"]
    assert "overflown" not in metrics
    assert metrics["total"] == rows(tmp_path)[-1]["total"]


def test_processes_on_gpus_agree_about_signals_without_their_gpus(monkeypatch):
    """At each step, on the host: it does not wait for the device."""
    exchanged = []
    monkeypatch.setattr("nnssl.dist.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.new_group", lambda backend: backend)
    monkeypatch.setattr(
        "torch.distributed.all_reduce",
        lambda flag, _, group: exchanged.append((flag.device.type, group)),
    )
    with Signals() as signals:
        assert not signals.stop_requested()
        sigterm()
        assert signals.stop_requested()
    assert exchanged == [("cpu", "gloo")] * 2


def test_signals_are_heard_and_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert not signals.stop_requested()
        sigterm()
        assert signals.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_interrupt_the_save_after_the_first():
    with Signals() as signals:
        assert signals.wait_for(sigterm) is None
        assert signals.gave_up
        sigterm()
        assert signals.stop_requested()


def test_what_comes_before_a_signal_is_kept_and_after_it_nothing_is_waited_for():
    with Signals() as signals:
        assert signals.wait_for(lambda: "a batch") == "a batch"
        sigterm()
        assert signals.wait_for(lambda: pytest.fail("waited for")) is None
        assert not signals.gave_up


# -- learning rate and parameter groups ------------------------------------------------


def test_the_learning_rate_in_closed_form():
    config = MethodConfig(lr=1e-3, lr_batch=8, lr_floor=1e-5, warmup=0.1)

    def rate(step: int, batch_size: int = 8) -> float:
        return learning_rate(config, step, 100, batch_size)

    assert rate(0) == pytest.approx(1e-4)
    assert rate(4) == pytest.approx(5e-4)
    assert rate(9) == rate(10) == pytest.approx(1e-3)
    assert rate(55) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(99) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert rate(9, batch_size=2) == pytest.approx(5e-4)  # the square root of the batch
    # nothing above 6e-4, nor above what was asked for
    assert rate(9, batch_size=32) == pytest.approx(1e-3)
    small = MethodConfig(lr=2e-4, lr_batch=8, warmup=0.0)
    peaks = [learning_rate(small, 0, 100, batch) for batch in (8, 32, 72, 800)]
    assert peaks == pytest.approx([2e-4, 4e-4, 6e-4, 6e-4])
    assert all(rate(step + 1) <= rate(step) for step in range(10, 99))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_learning_rate_of_very_short_runs(steps):
    for warmup in (0.0, 0.05, 1.0):
        rates = [
            learning_rate(MethodConfig(warmup=warmup), step, steps, 8) for step in range(steps)
        ]
        assert all(0 < rate <= MethodConfig().lr for rate in rates)


def test_the_log_tells_the_rate_that_was_used(tmp_path):
    run = micro.run(tmp_path, steps=3)
    train(run, silent)
    wanted = [learning_rate(run.method.config, step, 3, 4) for step in range(3)]
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx(wanted)
    assert run.optimizer.param_groups[0]["lr"] == wanted[-1]


def test_what_decays():
    method = micro.method()
    decayed, plain = parameter_groups(method, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(p): n for n, p in method.named_parameters()}
    exempt = {names[id(p)] for p in plain["params"]}
    assert "student.encoder.mask_token" in exempt
    assert all(".norm" in n or n.endswith((".bias", "bias_table", "mask_token")) for n in exempt)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {names[id(p)] for p in decayed["params"]} == trained - exempt
    assert not any(n.startswith("teacher") for n in trained)
    assert all(method.get_parameter(n).ndim >= 2 for n in trained - exempt)


# -- how much fits ---------------------------------------------------------------------


class Net(nn.Module):
    """Keeps its input and the output of the ReLU for the backward pass, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 20, bias=False), nn.Linear(20, 3, bias=False)

    def forward(self, views: dict) -> Step:
        return Step({"total": self.second(self.first(views["x"]).relu()).sum()}, {})


@pytest.mark.parametrize("batch", [1, 7])
def test_saved_bytes_against_a_count_by_hand(batch):
    x = torch.randn(batch, 10)
    assert capacity.saved_bytes(Net(), {"x": x}, micro.CPU, bf16=False) == 4 * batch * (10 + 20)


def test_saved_bytes_grow_with_the_batch():
    method = micro.method()
    one, two = (
        capacity.saved_bytes(method, micro.views(method, batch=n), micro.CPU, bf16=False)
        for n in (1, 2)
    )
    assert 1.6 * one < two < 2.1 * one  # not twice: some of it is not of a scan


@pytest.mark.parametrize(
    ("scans", "expected"), [(0, 1), (1, 1), (3.5, 3), (1000, capacity.MOST["cpu"])]
)
def test_the_batch_size_that_fits(monkeypatch, scans, expected):
    method = micro.method()
    needed = capacity.saved_bytes(
        method, capacity.trial(method, micro.CROP, micro.CPU), micro.CPU, bf16=False
    )
    fixed = 3 * sum(4 * p.numel() for p in method.parameters() if p.requires_grad)
    monkeypatch.setattr(
        capacity, "free_bytes", lambda _: int((fixed + scans * needed) / capacity.FRACTION) + 8
    )
    before = {k: _copy(v) for k, v in method.state_dict().items()}
    assert capacity.fitting_batch_size(method, micro.CROP, micro.CPU, bf16=False) == expected
    method.after_step(0.0)  # the trial has left nothing behind that would move a centre
    assert_same(before, dict(method.state_dict()))


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = capacity.free_bytes(micro.CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert capacity.free_bytes(micro.CPU) < 0.5 * alone


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"num_processes": -1}, "num_processes must be at least 0, got -1"),
        ({"probe_every": 0}, "probe_every must be at least 1, got 0"),
        ({"steps": 5, "epochs": 2}, "--steps 5 and --epochs 2 both give the length .* leave one"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_before_any_scan_is_read(given, message):
    with pytest.raises(ValueError, match=message):
        Options(method="smit", **given)


def test_epochs_become_steps():
    def steps(before: dict | None = None, **options) -> int:
        return build.steps_of(
            Options(method="smit", **options), before or {}, cases=10, batch_size=4
        )

    assert steps(epochs=3) == 8
    assert steps(steps=7) == 7
    assert steps() == DEFAULT_STEPS
    assert steps({"steps": 12}) == 12


def test_slow_steps_are_saved_by_the_clock(tmp_path, monkeypatch):
    """A killed run loses minutes, not the steps since the last thousandth or the last row."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run = micro.run(tmp_path, steps=5, log_every=4, save_every=100)
    saved = []
    save = run.save
    monkeypatch.setattr(run, "save", lambda metrics: saved.append(run.step) or save(metrics))
    loop.train(run, print_fn=print)
    assert saved == [1, 2, 3, 4, 5]
