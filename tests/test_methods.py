"""The contract of a method, over all of them: a new line in METHODS is tested the day it is written."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import micro
import pytest
import torch

from nnssl import checkpoint
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, Method, MethodConfig
from nnssl.train.schedule import parameter_groups

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden")
CROP = (32, 32, 32)  # the smallest whose last stage has more than one token, so that its bias table is trained

# Encoder tensors that a method does not train, with the reason. None so far.
UNTRAINED: dict[str, dict[str, str]] = {}

# Each of SMIT's terms alone and every pair of them; and blocks for which other maps are read.
ABLATIONS = [
    {"w_mip": 0.0},
    {"w_itd": 0.0},
    {"w_mpd": 0.0},
    {"w_itd": 0.0, "w_mpd": 0.0},
    {"w_mip": 0.0, "w_mpd": 0.0},
    {"w_mip": 0.0, "w_itd": 0.0},
    {"w_mip": 0.0, "w_itd": 0.0, "mask_block": 8},
    {"w_mip": 0.0, "w_itd": 0.0, "mask_block": 32, "mask_ratio": 0.5},
    {"w_mip": 0.0, "mask_block": 8},
]


def steps(method: Method, count: int, lr: float = 1e-3, batch: int = 2, crop=CROP, fixed: bool = False) -> list[dict]:
    """`count` plain optimiser steps, on one batch where `fixed`; the losses of each."""
    optimizer = torch.optim.AdamW(parameter_groups(method, 0.05), lr=lr)
    made, rows = micro.MadeCrops(method.region(crop)), []
    for step in range(count):
        indices = [i + (0 if fixed else step * batch) for i in range(batch)]
        out = method(micro.seen(method, [made[index] for index in indices]))
        optimizer.zero_grad()
        out.losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), method.config.clip_norm)
        optimizer.step()
        method.after_step((step + 1) / count)
        rows.append({name: float(value.detach()) for name, value in out.losses.items()})
    return rows


def trace(name: str) -> list[dict]:
    """The losses of ten steps from fixed weights on made crops: what the golden numbers hold."""
    torch.manual_seed(0)
    return steps(micro.method(name), 10, crop=micro.CROP)


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


# -- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_losses_are_finite_scalars_with_a_total(name, dims):
    method = micro.method(name, spatial_dims=dims)
    out = method(micro.views(method, crop=CROP[:dims]))
    assert "total" in out.losses
    for term, value in out.losses.items():
        assert value.ndim == 0, term
        assert torch.isfinite(value), term
    assert out.losses["total"].requires_grad
    assert not any(value.requires_grad for value in out.watched.values())


def test_watched_has_the_shapes_that_the_monitors_read(name):
    method = micro.method(name)
    watched = method(micro.views(method)).watched
    assert watched["embedding"].ndim == 2
    for key, value in watched.items():
        assert key == "embedding" or key.startswith("teacher_") or value.ndim == 0, key
        if key.startswith("teacher_"):
            torch.testing.assert_close(value.sum(dim=1), torch.ones(len(value)))


def test_the_gradient_reaches_every_encoder_tensor(name):
    method = micro.method(name)
    method(micro.views(method, crop=CROP)).losses["total"].backward()
    exported = {id(p) for p in method.encoder.parameters()}
    trained = [m for m in method.modules() if isinstance(m, Swin) and any(p.requires_grad for p in m.parameters())]
    assert len(trained) == 1
    silent = {n for n, p in trained[0].named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == set(UNTRAINED.get(name, {}))
    assert exported, "the encoder that is exported has no parameters"


def test_no_parameter_waits_for_a_gradient_in_vain(name):
    """DDP would wait for it too, for ever."""
    method = micro.method(name)
    method(micro.views(method)).losses["total"].backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in method.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_the_loss_falls_on_one_batch(name):
    rows = steps(micro.method(name), 16, fixed=True)
    assert rows[-1]["total"] < 0.9 * rows[0]["total"], rows


def test_the_same_seed_gives_the_same_bits(name):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        method = micro.method(name, drop_path=0.2)
        rows = steps(method, 3, crop=micro.CROP)
        results.append((rows, method.state_dict()))
    assert results[0][0] == results[1][0]
    for key, value in results[0][1].items():
        other = results[1][1][key]
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other, key


def test_another_seed_gives_other_views(name):
    method = micro.method(name)
    first, second = micro.views(method, seed=0), micro.views(method, seed=1)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_loss_draws_nothing(name):
    """All chance is in the views (and in drop path, which is off here)."""
    method = micro.method(name)
    views = micro.views(method)
    before = torch.get_rng_state()
    first = method(views).losses["total"]
    method.skipped_step()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, method(views).losses["total"])


def test_a_state_dict_holds_the_whole_method(name):
    """A second method, of other weights, goes on like the first."""
    method = micro.method(name)
    steps(method, 3, crop=micro.CROP)
    other = micro.method(name, seed=1)
    other.load_state_dict(method.state_dict())
    views = micro.views(method, seed=5)
    assert torch.equal(method(views).losses["total"], other(views).losses["total"])


def test_a_skipped_step_leaves_nothing_behind(name):
    method = micro.method(name)
    before = {k: v.clone() for k, v in method.state_dict().items() if torch.is_tensor(v)}
    method(micro.views(method))
    method.skipped_step()
    for key, value in before.items():
        assert torch.equal(method.state_dict()[key], value), key


def test_the_exported_encoder_fits_a_fine_tuning_network(name, tmp_path):
    method = micro.method(name)
    steps(method, 2, crop=micro.CROP)
    header = {**micro.header(name), "metrics": {}, "run": {}, "step": 2}
    checkpoint.write(tmp_path / "c.pth", checkpoint.pack(method.encoder, header, [method.citation]))
    loaded = checkpoint.load(tmp_path / "c.pth")
    network = Swin(replace(loaded.encoder_config, drop_path=0.3))
    done = checkpoint.transfer(loaded, network)
    assert done.matched == done.total == len(list(network.parameters()))
    assert set(done.explained) <= {"mask_token"}
    method.eval()
    image = micro.MadeCrops(CROP)[0]["crop"][None]
    for ours, theirs in zip(method.encoder(image), network.eval()(image), strict=True):
        assert torch.equal(ours, theirs)


def test_the_picture_shows_volumes(name):
    method = micro.method(name).eval()
    with torch.no_grad():
        volumes = method.show(micro.views(method, crop=CROP))
    assert volumes
    for title, volume in volumes.items():
        assert volume.shape[1] == 1, title
        assert volume.ndim == 5, title
        assert torch.isfinite(volume).any(), title


def test_the_golden_trace(name):
    """Ten steps give the committed numbers; other CPUs round differently, hence the tolerance.

    After a change that is meant to change a run: python tests/golden METHOD
    """
    wanted = json.loads((GOLDEN / f"{name}.json").read_text())
    got = trace(name)
    assert [set(row) for row in got] == [set(row) for row in wanted]
    for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        for term, value in theirs.items():
            assert ours[term] == pytest.approx(value, rel=2e-3 if step else 1e-4, abs=1e-4), (step, term)


# -- configs and the registry ----------------------------------------------------------------------------------------


def test_the_registry_is_the_folder_and_the_documentation(name):
    pages = {path.stem for path in (REPOSITORY / "nnssl" / "methods").glob("*.py")} - {"__init__", "method"}
    documented = {path.stem for path in (REPOSITORY / "documentation" / "methods").glob("*.md")}
    assert set(METHODS) == pages == documented
    assert METHODS[name].__module__ == f"nnssl.methods.{name}"


def test_a_method_introduces_itself(name):
    method = METHODS[name]
    assert method.title
    assert method.family
    assert re.search(r"\b(19|20)\d\d\b", method.citation), "a citation has a year"
    assert is_dataclass(method.Config)
    assert method.Config.__dataclass_params__.frozen
    json.dumps(asdict(method.Config()), allow_nan=False)


def test_every_field_can_be_set_by_its_own_words(name):
    config = METHODS[name].Config
    for field in fields(config):
        assert config.parse([f"{field.name}={field.default}"]) == config(), field.name


def test_unknown_fields_list_the_known_ones(name):
    config = METHODS[name].Config
    with pytest.raises(ValueError, match="cannot set 'tau=1'") as error:
        config.parse(["tau=1"])
    assert all(f"{field.name}=" in str(error.value) for field in fields(config))


@pytest.mark.parametrize("setting", ["lr", "lr=", "=1", "lr=fast", "lr 1"])
def test_bad_settings_are_refused(setting):
    with pytest.raises(ValueError, match=re.escape(f"cannot set {setting!r}")):
        MethodConfig.parse([setting])


# -- SMIT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ABLATIONS, ids=lambda s: "-".join(f"{k}{v:g}" for k, v in s.items()))
def test_smits_ablations_train(settings):
    method = micro.method(**settings)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    rows = steps(method, 2, crop=(32, 32, 64))  # two blocks of 32: something is seen
    waiting = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert waiting == set()
    wanted = {term for term in ("mip", "itd", "mpd") if settings.get(f"w_{term}", 1) > 0}
    assert set(rows[0]) == wanted | {"total"}
    moved = {n for n, p in method.named_parameters() if p.requires_grad and not torch.equal(p, before[n])}
    assert moved == {n for n, p in method.named_parameters() if p.requires_grad}


def test_smits_total_is_the_weighted_sum():
    method = micro.method(w_mip=0.5, w_itd=0.25, w_mpd=2.0)
    losses = method(micro.views(method)).losses
    expected = 0.5 * losses["mip"] + 0.25 * losses["itd"] + 2 * losses["mpd"]
    torch.testing.assert_close(losses["total"], expected)


def test_smits_global_loss_is_crossed_and_its_patch_loss_is_not():
    """Two equal views: crossed or not is the same. One view replaced: only the crossed term of the other changes."""
    method = micro.method()
    views = micro.views(method, batch=1)
    image, masked = views["image"], views["masked"]
    student = method.student(image.flatten(0, 1), method._masked(masked.flatten(0, 1)), masked.flatten(0, 1))
    teacher = method.teacher(image.flatten(0, 1), None, masked.flatten(0, 1))

    def ce(logits, target):
        return -(target / 0.04).softmax(-1).mul((logits / 0.1).log_softmax(-1)).sum(-1).mean()

    losses = method(views).losses
    crossed = (ce(student.image[:1], teacher.image[1:]) + ce(student.image[1:], teacher.image[:1])) / 2
    torch.testing.assert_close(losses["itd"], crossed)
    torch.testing.assert_close(losses["mpd"], ce(student.patch, teacher.patch))


def test_smits_voxel_loss_counts_hidden_voxels_only():
    method = micro.method(w_itd=0.0, w_mpd=0.0)
    views = micro.views(method, crop=CROP)
    hidden = views["masked"].repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    with torch.no_grad():
        shown = method.eval().show(views)
    error = (shown["predicted"] - shown["teacher sees"]).abs()
    covered = hidden.flatten(0, 1).unsqueeze(1)
    assert float(error[~covered].abs().max()) == 0
    torch.testing.assert_close(method(views).losses["mip"], error[covered].mean())
    assert torch.equal(shown["student sees"][~covered], shown["teacher sees"][~covered])
    assert shown["student sees"][covered].isnan().all()


def test_what_is_hidden_does_not_reach_smits_student():
    method = micro.method(w_itd=0.0, w_mpd=0.0).eval()
    views = micro.views(method, crop=CROP)
    covered = views["masked"]
    for axis in (2, 3, 4):
        covered = covered.repeat_interleave(16, axis)
    other = views["image"].masked_fill(covered.unsqueeze(2), 100.0)
    args = views["masked"].flatten(0, 1)
    first = method.student(views["image"].flatten(0, 1), method._masked(args), args).maps
    second = method.student(other.flatten(0, 1), method._masked(args), args).maps
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_smits_teacher_starts_equal_gets_no_gradient_and_follows():
    method = micro.method(teacher_momentum=0.5)
    pairs = list(zip(method.student.parameters(), method.teacher.model.parameters(), strict=True))
    assert all(torch.equal(s, t) for s, t in pairs)
    old = [t.clone() for _, t in pairs]
    steps(method, 1, crop=micro.CROP)  # progress 1 at its end: momentum 1, the teacher stays
    assert all(torch.equal(t, o) for (_, t), o in zip(pairs, old, strict=True))
    method.after_step(0.0)
    for (student, teacher), before in zip(pairs, old, strict=True):
        torch.testing.assert_close(teacher, (student.detach() + before) / 2)
        assert teacher.grad is None


def test_smit_holds_its_prototypes_at_the_start():
    method = micro.method(freeze_prototypes=0.5)
    views = micro.views(method, crop=(32, 32, 32))  # a crop of one hidden block would leave nothing to tell apart
    weight = method.student.patch_head.prototypes.weight
    for progress, held in ((0.0, True), (0.4, True), (0.5, False)):
        method.zero_grad()
        method(views).losses["total"].backward()
        assert (float(weight.grad.abs().sum()) == 0) is held
        method.after_step(progress + 0.4 if held and progress == 0 else 0.5)


def test_smits_temperature_warms_up_and_the_patch_head_later():
    method = micro.method(temperature_warmup=0.1)
    for progress, image, patch in ((0, 0.04, 0.04), (0.05, 0.055, 0.04), (0.1, 0.07, 0.04), (0.15, 0.07, 0.055)):
        method.progress = progress
        assert method._teacher_temperature(delay=0) == pytest.approx(image)
        assert method._teacher_temperature(delay=1) == pytest.approx(patch)


@pytest.mark.parametrize("kept", ["teacher", "student"])
def test_smits_export(kept):
    method = micro.method(export=kept)
    source = method.teacher.model if kept == "teacher" else method.student
    assert method.encoder is source.encoder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_block": 12}, r"stride of a stage, \[8, 16, 32\], got 12"),
        ({"mask_ratio": 1.0}, "between 0 and 1, got 1.0"),
        ({"mask_ratio": float("nan")}, "between 0 and 1, got nan"),
        ({"export": "both"}, "teacher or student, got 'both'"),
        ({"w_mip": 0, "w_itd": 0, "w_mpd": 0}, "one of w_mip, w_itd, w_mpd"),
    ],
)
def test_smit_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        micro.config(**settings)


def test_smit_refuses_a_crop_that_its_blocks_do_not_divide():
    method = micro.method(mask_block=32)
    with pytest.raises(ValueError, match="block 32 does not divide crop 48x48x48"):
        micro.views(method, crop=(48, 48, 48))
