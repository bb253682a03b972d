"""The collapse monitors in closed form."""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import micro
import pytest
import torch

from nnssl.methods import METHODS
from nnssl.parsers import pretrain_parser
from nnssl.train import configure, monitors
from nnssl.train.monitors import FOUND, PATIENCE, Monitors, embedding_std, entropies, rankme

SMIT = micro.method("smit")


def every_advice(config) -> list[str]:
    return [monitors.advice(alarm, config) for alarm in FOUND]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- embeddings ------------------------------------------------------------------------


def test_equal_embeddings_have_no_spread_and_rank_one():
    # length does not count
    equal = randn(1, 16).expand(40, 16) * torch.linspace(0.5, 2, 40)[:, None]
    assert embedding_std(equal) == pytest.approx(0, abs=1e-4)
    assert rankme(randn(1, 16).expand(40, 16)) == pytest.approx(1, abs=1e-3)


def test_embeddings_all_over_the_sphere_have_a_std_of_one():
    assert embedding_std(randn(4000, 32)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("n", [1, 5, 16])
def test_orthonormal_embeddings_have_full_rank(n):
    assert rankme(torch.linalg.qr(randn(16, 16))[0][:n]) == pytest.approx(n, rel=1e-4)


def test_rankme_by_hand():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    fraction = values / values.sum()
    expected = math.exp(-float((fraction * fraction.log()).sum()))
    rotated = (
        torch.linalg.qr(randn(4, 4))[0] @ values.diag() @ torch.linalg.qr(randn(4, 4, seed=1))[0]
    )
    assert rankme(rotated) == pytest.approx(expected, rel=1e-4)
    assert rankme(7 * rotated) == pytest.approx(expected, rel=1e-4)


def test_rankme_of_nothing_but_zeros():
    assert math.isfinite(rankme(torch.zeros(4, 3)))


# -- teacher targets -------------------------------------------------------------------


def test_uniform_targets():
    each, spread, _ = entropies(torch.full((6, 50), 1 / 50))
    assert (each, spread) == pytest.approx((1, 1), abs=1e-5)


def test_one_prototype_for_everything():
    one = torch.zeros(6, 50)
    one[:, 3] = 1
    each, spread, used = entropies(one)
    assert (each, spread) == pytest.approx((0, 0), abs=1e-6)
    assert used == 1


def test_sure_but_different_targets_are_healthy():
    each, spread, used = entropies(torch.eye(50))
    assert (each, spread) == pytest.approx((0, 1), abs=1e-5)
    assert used == 50


def test_rows_that_fill_up_a_list_are_no_targets():
    """Of a list of fixed length: they were read as tokens of their own."""
    filled = torch.cat([torch.eye(50)[:7], torch.zeros(20, 50)])
    assert entropies(filled) == pytest.approx(entropies(torch.eye(50)[:7]))
    assert entropies(torch.zeros(3, 50)) == (0, 0, 0)


def test_bf16_targets_are_read_in_fp32():
    each, _, _ = entropies(torch.full((2, 8192), 1 / 8192, dtype=torch.bfloat16))
    assert each == pytest.approx(1, abs=1e-3)


def test_no_advice_takes_parts_of_a_batch_for_a_larger_one():
    for name in METHODS:
        assert not any("--accumulate" in said for said in every_advice(micro.config(name)))


# -- memory and alarms -----------------------------------------------------------------


def test_the_last_embeddings_are_kept(monkeypatch):
    monkeypatch.setattr(monitors, "WINDOW", 5)
    watch = Monitors()
    assert watch.read({}) == {}
    for step in range(4):
        watch.record({"embedding": torch.full((2, 3), float(step), requires_grad=False)})
    assert watch.embeddings[:, 0].tolist() == [1, 2, 2, 3, 3]


def test_a_network_that_moves_does_not_hide_that_all_crops_look_alike_to_it():
    watch = Monitors()
    for direction in randn(20, 6):  # equal embeddings in each step, others in the next
        watch.record({"embedding": direction.expand(monitors.RECENT, 6)})
    row = watch.read({})
    assert row["embedding_std"] == pytest.approx(0, abs=1e-6)
    assert row["rankme"] > 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_batch_that_overflowed_is_left_out(bad):
    """One such row would make every later singular value decomposition fail."""
    watch = Monitors()
    embedding = randn(4, 3)
    embedding[1, 2] = bad
    watch.record({"embedding": embedding})
    assert torch.equal(watch.embeddings, embedding[[0, 2, 3]])
    assert all(math.isfinite(value) for value in watch.read({}).values())
    watch.record({"embedding": torch.full((2, 3), bad)})
    assert len(watch.embeddings) == 3


def test_names_of_the_numbers():
    watch = Monitors()
    watch.record({"embedding": randn(4, 3)})
    row = watch.read({"embedding": randn(4, 3), "teacher_patch": torch.eye(3)})
    assert set(row) == {"embedding_std", "rankme", "entropy_patch", "spread_patch", "used_patch"}


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"embedding_std": 0.04}, ["embedding"]),
        ({"embedding_std": 0.06}, []),
        ({"entropy_image": 0.5, "entropy_patch": 0.99}, ["uniform"]),
        ({"spread_image": 0.01}, ["single"]),
        ({"embedding_std": 0.01, "spread_image": 0.01}, ["embedding", "single"]),
        ({}, []),
    ],
)
def test_alarms_wait_and_are_said_once(row, advice):
    watch = Monitors()
    said = [watch.alarms(row, SMIT) for _ in range(PATIENCE + 3)]
    assert said[: PATIENCE - 1] == [[]] * (PATIENCE - 1)
    assert said[PATIENCE - 1] == [monitors.advice(name, SMIT.config) for name in advice]
    assert said[PATIENCE:] == [[]] * 3


def test_a_reading_that_is_well_ends_the_count():
    watch = Monitors()
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            assert watch.alarms({"embedding_std": 0.0}, SMIT) == []
        assert watch.alarms({"embedding_std": 1.0}, SMIT) == []


def test_state_survives_a_resume():
    first, second = Monitors(), Monitors()
    first.record({"embedding": randn(4, 3)})
    first.alarms({"embedding_std": 0.0}, SMIT)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.embeddings, second.embeddings)
    said = [second.alarms({"embedding_std": 0.0}, SMIT) for _ in range(PATIENCE - 1)]
    assert said[-1] == [monitors.advice("embedding", SMIT.config)]


PUBLISHED = [(name, ["published=true"]) for name in METHODS if name != "parcels"]  # has no paper


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, []) for name in METHODS), *PUBLISHED], ids=str
)
def test_the_advice_names_options_that_exist_and_would_change_something(name, settings):
    sizes = configure.Sizes((48,) * 3, (2.0,) * 3, scans=200, steps=1000, batch_size=8)
    config, _ = configure.configure(METHODS[name], settings, sizes)
    flags = {option for action in pretrain_parser()._actions for option in action.option_strings}
    for said in every_advice(config):
        assert set(re.findall(r"(--[a-z-]+)", said)) <= flags
        for words in re.findall(r"--set ([^)]+)\)", said):
            given = METHODS[name].Config.read(words.split())
            assert all(getattr(config, field) != value for field, value in given.items())
            METHODS[name].Config.parse([*settings, *words.split()])


def test_the_advice_follows_the_values_of_the_run():
    config = micro.config("dino", teacher_momentum=0.99, prototypes=1024)
    _, uniform, single, _ = every_advice(config)
    cooler = "--set teacher_temperature_start=0.03 teacher_temperature_end=0.03"
    assert cooler in uniform
    assert "prototypes=" not in uniform
    assert "centre_momentum=0.8" in single
    assert "teacher_momentum=0.995" in monitors.advice("embedding", config)
    already = micro.config("dino", **asdict(METHODS["dino"].Config.parse(cooler.split()[1:])))
    assert "sharper" not in monitors.advice("uniform", already)


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_that_are_alike_alarm_where_a_loss_separates_crops(name):
    method = micro.method(name)
    losses = method(micro.views(method)).losses
    assert set(method.separating) <= set(losses)
    watch = Monitors()
    said = [watch.alarms({"embedding_std": 0.01}, method) for _ in range(PATIENCE)][-1]
    assert bool(said) is (name not in ("simmim", "rotation", "parcels"))
    assert all("this run may have collapsed" in text for text in said)


def test_a_term_without_weight_separates_nothing():
    for name, weights in [("smit", {"w_itd": 0, "w_mpd": 0}), ("swinunetr", {"w_contrast": 0})]:
        watch, method = Monitors(), micro.method(name, **weights)
        assert not any(watch.alarms({"embedding_std": 0.0}, method) for _ in range(PATIENCE))


def test_a_solved_task_is_no_collapse():
    watch = Monitors()
    (said,) = [watch.alarms({"accuracy": 1.0}, SMIT) for _ in range(PATIENCE)][-1]
    assert "nearly always solved" in said
    assert "collapsed" not in said
