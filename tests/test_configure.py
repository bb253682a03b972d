"""What a run chooses by itself, what wins over it, and what it says of it."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields, replace

import micro
import pytest
import torch

from nnssl import files
from nnssl.methods import METHODS
from nnssl.train import capacity, configure
from nnssl.train.configure import Sizes
from nnssl.train.log import Log, duration

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = Sizes(crop=(64, 48, 64), spacing=(2.5, 3.9, 3.9), scans=203, steps=2000, batch_size=4)
LARGE = Sizes(
    crop=(96, 96, 96), spacing=(2.0, 2.0, 2.0), scans=10_412, steps=100_000, batch_size=32
)

OF_PAPERS = [name for name in METHODS if name != "parcels"]


def chosen(name: str, sizes: Sizes, *settings: str) -> dict:
    return {
        choice.name: choice.value
        for choice in configure.configure(METHODS[name], settings, sizes)[1]
    }


def test_a_small_run_of_smit():
    assert chosen("smit", HEADS) == {
        "mask_block": (16, 8, 8),
        "prototypes": 1024,
        "head_hidden": 512,
        "teacher_momentum": 0.995,
        "teacher_temperature_end": 0.04,
        "beta2": 0.95,
    }


@pytest.mark.parametrize("name", METHODS)
def test_one_scan_is_refused_or_warned_about_where_a_loss_would_be_zero(name):
    """As measured: with one scan nothing is a negative, and the loss is exactly 0."""
    method = micro.method(name)
    views = micro.views(method)
    losses = method({**views, "scan": torch.zeros_like(views["scan"])}).losses
    (zero,) = [loss for loss, value in losses.items() if value == 0] or [""]
    assert method.between_scans == zero
    said: list[str] = []
    configure.check_scans(METHODS[name], 2, said.append)
    assert said == []
    if zero == "total":
        with pytest.raises(
            ValueError, match=r"there is 1 usable scan; .* At least 2 .*: give more"
        ):
            configure.check_scans(METHODS[name], 1, said.append)
    else:
        configure.check_scans(METHODS[name], 1, said.append)
        assert len(said) == bool(zero)


@pytest.mark.parametrize("name", METHODS)
def test_a_small_batch_is_counted_as_the_loss_compares_its_scans(name):
    """A step's parts count alone only where they change the loss."""
    method = micro.method(name).eval()
    crops = micro.SyntheticCrops(method.region(micro.CROP), cases=8)
    samples = [crops[number] for number in range(8)]

    def total(of: list[dict]) -> float:
        return method(micro.prepare_views(method, of)).losses["total"].item()

    halves = (total(samples[:4]) + total(samples[4:])) / 2
    alike = total(samples) == pytest.approx(halves, rel=1e-5)
    least, said = method.smallest_batch, []
    configure.warn_small(method, 2 * least, 2, said.append)
    assert said == []
    configure.warn_small(method, least, 2, said.append)
    assert bool(said) is (not alike)
    for warning in said:
        assert f"this run has {least // 2}. " in warning
        assert "--accumulate does not help" in warning
    advice: list[str] = []
    configure.warn_small(method, least - 1, 1, advice.append)
    (warning,) = advice
    assert ("--accumulate does not help" in warning) is (not alike)


def test_visible_blocks_alone_are_whole_windows():
    assert chosen("simmim", HEADS, "visible_only=true")["mask_block"] == (16, 16, 16)


def test_parcels_have_the_rate_of_parcels():
    """All SMIT that has helped was trained at it."""
    own = METHODS["parcels"].Config()
    config, choices = configure.configure(METHODS["smit"], ["w_parcels=1"], HEADS)
    assert (config.lr, config.lr_most) == (own.lr, own.lr_most)
    assert [choice.name for choice in choices][-2:] == ["lr", "lr_most"]
    given, _ = configure.configure(METHODS["smit"], ["w_parcels=1", "lr=2e-4"], HEADS)
    assert given.lr == 2e-4
    without, _ = configure.configure(METHODS["smit"], [], HEADS)
    assert without.lr == METHODS["smit"].Config().lr < own.lr


def test_a_large_run_of_smit():
    config, _ = configure.configure(METHODS["smit"], [], LARGE)
    assert (config.mask_block, config.prototypes, config.teacher_momentum) == (
        (16, 16, 16),
        8192,
        0.999,
    )
    assert (config.centre_momentum, config.teacher_temperature_end, config.beta2) == (
        0.9,
        0.07,
        0.999,
    )


@pytest.mark.parametrize(
    ("crop", "spacing", "block"),
    [
        ((96, 96, 96), (1.0, 1.0, 1.0), (16, 16, 16)),  # 32 would leave three an axis
        ((128, 128), (1.0, 1.0), (32, 32)),
        ((48, 48, 48), (2.0, 2.0, 2.0), (8, 8, 8)),
        ((32, 64, 64), (5.0, 5.0, 5.0), (8, 8, 8)),
        ((16, 96, 96), (10.0, 1.5, 1.5), (8, 16, 16)),
    ],
)
def test_blocks_have_some_32_mm(crop, spacing, block):
    assert configure.hidden_block(crop, spacing) == block


@pytest.mark.parametrize(
    ("steps", "within"),
    [(2, "100 steps"), (999, "100 steps"), (1000, "a tenth of the run"), (9**6, "a tenth")],
)
def test_the_reason_for_the_teachers_momentum_is_true(steps, within):
    sizes = replace(HEADS, steps=steps)
    (choice,) = (
        choice
        for choice in configure.configure(METHODS["smit"], [], sizes)[1]
        if choice.name == "teacher_momentum"
    )
    assert f"within {within}" in choice.reason


def test_the_reason_for_a_block_claims_no_more_than_the_crop_allows():
    sizes = replace(HEADS, crop=(32, 32, 32), spacing=(3.0, 2.0, 1.5))
    (choice,) = (
        choice
        for choice in configure.configure(METHODS["simmim"], [], sizes)[1]
        if choice.name == "mask_block"
    )
    assert choice.reason == (
        "24 x 16 x 12 mm at this spacing: of 8, 16 or 32 voxels the nearest to the 32 mm of SMIT's "
        "authors, with at least 4 blocks along each axis where the crop allows"
    )


@pytest.mark.parametrize(
    ("side", "cubes", "ahead"), [(96, 3, 2), (64, 2, 1), (48, 2, 1), (32, 2, 1)]
)
def test_cubes_of_cpc_have_24_voxels_where_the_crop_allows(side, cubes, ahead):
    sizes = Sizes((side,) * 3, (2.0,) * 3, 100, 1000, 8)
    found = chosen("cpc", sizes)
    assert (found["cubes"], found["ahead"]) == (cubes, ahead)
    reasons = [str(c) for c in configure.configure(METHODS["cpc"], [], sizes)[1]]
    assert any("take a --crop of 48" in reason for reason in reasons) is (side < 48)
    assert METHODS["cpc"].Config().lr == 2e-4


@pytest.mark.parametrize("name", METHODS)
def test_what_is_set_wins_and_each_choice_has_its_reason(name):
    for choice in configure.configure(METHODS[name], [], HEADS)[1]:
        assert choice.reason
        assert "\n" not in str(choice)
        setting = f"{choice.name}={getattr(METHODS[name].Config(), choice.name)}"
        config, rest = configure.configure(METHODS[name], [setting], HEADS)
        assert getattr(config, choice.name) == getattr(METHODS[name].Config(), choice.name)
        assert choice.name not in {c.name for c in rest}


@pytest.mark.parametrize("name", OF_PAPERS)
def test_published_settings_are_the_papers_whatever_the_run(name):
    method = METHODS[name]
    config, choices = configure.configure(method, ["published=true"], HEADS)
    assert choices == []
    assert config == configure.configure(method, ["published=true"], LARGE)[0]
    papers = method.Config.of_the_papers()
    assert set(papers) <= {field.name for field in fields(config)}
    assert config == method.Config(**{**papers, "published": True})
    json.dumps(asdict(config), allow_nan=False)
    assert configure.configure(method, ["published=true", "lr=1e-3"], HEADS)[0].lr == 1e-3


def test_published_smit_is_the_authors():
    config = METHODS["smit"].Config.parse(["published=true"])
    assert (config.mask_block, config.mask_ratio, config.mask_air) == ((16,), 0.7, True)
    assert (config.decode_from, config.smooth_l1, config.window_jitter, config.patch_tokens) == (
        32,
        0.0,
        0.0,
        0,
    )
    assert (config.teacher_temperature_end, config.teacher_momentum, config.prototypes) == (
        0.07,
        0.996,
        8192,
    )
    assert (config.w_mip, config.w_itd, config.w_mpd, config.lr) == (1.0, 0.1, 0.1, 6e-4)
    assert (config.lr_batch, config.weight_decay, config.export) == (6, 0.01, "student")


def test_published_gradients_are_clipped_as_the_authors_do():
    clipped = {name: METHODS[name].Config.parse(["published=true"]) for name in OF_PAPERS}
    assert {name: config.clip_norm for name, config in clipped.items() if config.clip_norm} == {
        "dino": 3.0,
        "ibot": 3.0,
        "simmim": 5.0,
        "swinunetr": 1.0,
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=0", "lr must be above 0, got 0"),
        ("lr_batch=0", "lr_batch must be above 0, got 0"),
        ("clip_norm=-1", "clip_norm must be a length above 0, or 0 for no clipping, got -1"),
        ("warmup=30", "warmup is a fraction of the run's steps, from 0 to below 1, got 30"),
        ("warmup=nan", "'nan' is not a finite number"),
        ("clip_norm=inf", "'inf' is not a finite number"),
        ("lr_floor=1", "lr_floor must be from 0 to lr="),
        ("lr_floor=-1", "lr_floor must be from 0 to lr="),
        ("beta2=1", "beta2 must be from 0 to below 1, got 1"),
        ("drop_path=1", "drop_path must be from 0 to below 1, got 1"),
        ("weight_decay=-1", "weight_decay must be 0 or more, got -1"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_what_could_not_learn_is_refused(name, setting, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].Config.parse([setting])


def test_two_cubes_need_no_other_setting():
    assert METHODS["cpc"].Config.parse(["cubes=2"]).distances == 1
    config, _ = configure.configure(METHODS["cpc"], ["cubes=2"], HEADS)
    assert (config.cubes, config.ahead, config.distances) == (2, 1, 1)
    assert METHODS["cpc"].Config.parse([]).distances == 2


def test_a_run_that_goes_on_keeps_what_it_had():
    config, _ = configure.configure(METHODS["smit"], ["lr=3e-4"], HEADS)
    stored = json.loads(json.dumps(asdict(config)))
    assert configure.configure(METHODS["smit"], [], LARGE, stored) == (config, [])
    assert configure.configure(METHODS["smit"], ["lr=1e-4"], LARGE, stored)[0].lr == 1e-4


def test_a_checkpoint_of_before_keeps_the_loss_that_it_was_made_with():
    stored = {
        "lr": 6e-4,
        "mask_block": 16,
        "decode_from": 32,
        "clip_norm": 3.0,
        "window_jitter": 0.5,
    }
    config = METHODS["simmim"].Config.stored(stored)
    assert (config.mask_block, config.mask_air, config.smooth_l1, config.window_jitter) == (
        (16,),
        True,
        0.0,
        0.5,
    )
    assert config.published is False


@pytest.mark.parametrize(
    ("name", "crop", "fits"),
    [
        ("smit", (64, 48, 64), (64, 48, 64)),
        ("rotation", (64, 48, 64), (48, 48, 48)),
        ("swinunetr", (32, 48, 64), (32, 48, 48)),
        ("rotation", (64, 48), (48, 48)),
    ],
)
def test_a_crop_takes_the_shape_that_a_method_needs(name, crop, fits):
    assert configure.fitting_crop(METHODS[name], crop) == fits


@pytest.mark.parametrize(
    ("name", "settings", "fits"),
    [
        ("simmim", ["published=true"], (96, 32, 64)),
        ("simmim", ["mask_block=32x16x16"], (96, 48, 64)),
        ("ibot", ["mask_block=32"], (96, 32, 64)),
        ("ibot", ["published=true"], (96, 48, 64)),
    ],
)
def test_a_crop_holds_whole_blocks_of_a_size_that_is_given(name, settings, fits):
    assert configure.fitting_crop(METHODS[name], (96, 48, 64), settings) == fits
    config, _ = configure.configure(METHODS[name], settings, replace(HEADS, crop=fits))
    micro.views(micro.method(name, mask_block=config.mask_block), crop=fits)
    configure.require_visible(config, fits)


@pytest.mark.parametrize(("fits", "timely", "expected"), [(5, 9, 5), (8, 3, 3), (1, 1, 1)])
def test_a_cpus_batch_is_what_fits_and_is_done_in_time(monkeypatch, fits, timely, expected):
    monkeypatch.setattr(configure, "fitting_batch_size", lambda *_: fits)
    monkeypatch.setattr(configure, "timely_batch_size", lambda *_: timely)
    got, reason = configure.batch_size(micro.method(), micro.CROP, micro.CPU, False)
    assert got == expected
    assert ("takes a second or two" in reason) is (expected < fits)


def test_a_trial_for_time_leaves_nothing_behind_and_keeps_to_the_methods_least():
    method = micro.method("simclr")
    before = {k: copy.deepcopy(v) for k, v in method.state_dict().items()}
    assert (
        method.smallest_batch
        <= capacity.timely_batch_size(method, micro.CROP, micro.CPU)
        <= capacity.MOST["cpu"]
    )
    assert all(p.grad is None for p in method.parameters())
    method.after_step(0.0)
    after = method.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if torch.is_tensor(v))


def test_a_busy_moment_does_not_decide_on_a_batch(monkeypatch):
    """Nor does the first pass: the least counts, to a power of two."""
    seconds = iter([0.9, 0.3, 0.34])
    monkeypatch.setattr(capacity, "_seconds_per_scan", lambda *_: next(seconds))
    assert capacity.timely_batch_size(micro.method(), micro.CROP, micro.CPU) == 4
    monkeypatch.setattr(capacity, "_seconds_per_scan", lambda *_: 20.0)  # once
    assert capacity.timely_batch_size(micro.method("simmim"), micro.CROP, micro.CPU) == 1


def test_a_picture_moves_no_running_moment(tmp_path, monkeypatch):
    """Rank zero alone draws, and a resumed run draws at other steps."""
    run = micro.run(tmp_path, "byol")
    noted = run.method.answers.moments
    monkeypatch.setattr(
        run.method, "show", lambda views: run.method(views) and {"view": views["image"][0]}
    )
    log = Log(run, print)
    files.write_json_lines(log.path, [{"step": 1, "total": 1.0, "lr": 1.0, "grad_norm": 1.0}])
    before = noted.value.clone()
    log.draw()
    run.method.after_step(0.5)
    assert torch.equal(noted.value, before)


def test_the_first_steps_tell_how_long_a_run_will_take(tmp_path):
    said = []
    log = Log(micro.run(tmp_path, steps=10_000), said.append)
    for seconds in (2.0, 3.0):  # of the first rows
        log.pace(seconds)
    assert len(said) == 1
    assert said[0].startswith("\n2 s per step: 5 h 33 min left; shorter: fewer --steps")
    assert [duration(s) for s in (40, 600, 12_000, 200_000)] == [
        "40 s",
        "10 min",
        "3 h 20 min",
        "2 d 8 h",
    ]
