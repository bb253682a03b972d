"""The contract of a method, over all of them: a new line in METHODS is tested the day it is
written.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import micro
import pytest
import torch

from nnssl import checkpoint
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, MethodConfig
from nnssl.modules.running import discard_all

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden")
# the smallest whose last stage has more than one token, so that its bias table is trained
CROP = (32, 32, 32)

# Encoder tensors that a method does not train, with the reason.
PATCHES_ARE_T4 = "patches and views are answered from T4, before the last merge"
UNTRAINED: dict[str, dict[str, str]] = {
    "ibot": {
        f"layers4.0.downsample.{name}": PATCHES_ARE_T4
        for name in ("norm.weight", "norm.bias", "reduction.weight")
    },
    "mocov3": {
        f"patch_embed.proj.{name}": "stays random (Chen 2021, section 4.2), unless "
        "freeze_patches=false"
        for name in ("weight", "bias")
    },
    "cpc": {
        "layers4.0.blocks.0.attn.relative_position_bias_table": "a crop of 32 has cubes of 10, "
        "with one token in stage 4; the default's cubes of 32 train it (tests/test_cpc.py)"
    },
}

ENCODERS = {
    "preset": {},
    "SMIT's": {"out_norms": True},
    "MONAI's": {"taps": "merge"},
    "MONAI's v2": {"taps": "merge", "convolutions": True},
}

# Settings by which other maps of the encoder are read.
READING = {
    "dino": [{}, {"pooled_maps": 3}],
    "simmim": [{}, {"decode_from": 32}],
    "smit": [{}, {"w_mip": 0.0}, {"w_itd": 0.0}, {"w_mip": 0.0, "w_itd": 0.0}, {"w_parcels": 1.0}],
}


def trace(name: str) -> list[dict]:
    """The losses of ten steps from fixed weights on made crops: what the golden numbers hold."""
    torch.manual_seed(0)
    return micro.steps(micro.method(name), 10)


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


# -- the contract ----------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_losses_are_finite_scalars_with_a_total(name, dims):
    method = micro.method(name, spatial_dims=dims)
    out = method(micro.views(method, crop=CROP[:dims]))
    assert "total" in out.losses
    for term, value in out.losses.items():
        assert value.ndim == 0, term
        assert torch.isfinite(value), term
    assert out.losses["total"].requires_grad
    assert not any(value.requires_grad for value in out.monitored.values())


def test_watched_has_the_shapes_that_the_monitors_read(name):
    method = micro.method(name)
    monitored = method(micro.views(method)).monitored
    assert monitored["embedding"].ndim == 2
    for key, value in monitored.items():
        assert key == "embedding" or key.startswith("teacher_") or value.ndim == 0, key
        if key.startswith("teacher_"):
            torch.testing.assert_close(value.sum(dim=1), torch.ones(len(value)))


def test_the_gradient_reaches_every_encoder_tensor(name):
    method = micro.method(name)
    method(micro.views(method, crop=CROP)).losses["total"].backward()
    exported = {id(p) for p in method.encoder.parameters()}
    trained = [
        m
        for m in method.modules()
        if isinstance(m, Swin) and any(p.requires_grad for p in m.parameters())
    ]
    assert len(trained) == 1
    silent = {
        n for n, p in trained[0].named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    }
    assert silent == set(UNTRAINED.get(name, {}))
    assert exported, "the encoder that is exported has no parameters"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_parameter_waits_for_a_gradient_in_vain(name, encoder):
    """DDP would wait for it too, for ever."""
    for settings in READING.get(name, [{}]):
        _require_no_waiting(name, ENCODERS[encoder], settings)


def _require_no_waiting(name: str, encoder: dict, settings: dict) -> None:
    config = micro.config(name, **settings)
    method = METHODS[name](Swin(replace(micro.ENCODER, **encoder), maskable=True), config).train()
    method(micro.views(method)).losses["total"].backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [
        n for n, p in method.named_parameters() if not p.requires_grad and p.grad is not None
    ] == []


def test_the_loss_falls_on_one_batch(name):
    rows = micro.steps(micro.method(name), 16, crop=CROP, fixed=True)
    assert rows[-1]["total"] < 0.9 * rows[0]["total"], rows


def test_the_same_seed_gives_the_same_bits(name):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        method = micro.method(name, drop_path=0.2)
        rows = micro.steps(method, 3)
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
    discard_all(method)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, method(views).losses["total"])


def test_a_state_dict_holds_the_whole_method(name):
    """A second method, of other weights, continues like the first."""
    method = micro.method(name)
    micro.steps(method, 3)
    other = micro.method(name, seed=1)
    other.load_state_dict(method.state_dict())
    views = micro.views(method, seed=5)
    assert torch.equal(method(views).losses["total"], other(views).losses["total"])


def test_a_trial_that_is_discarded_leaves_nothing_behind(name):
    method = micro.method(name)
    before = {k: v.clone() for k, v in method.state_dict().items() if torch.is_tensor(v)}
    method(micro.views(method))
    discard_all(method)
    for key, value in before.items():
        assert torch.equal(method.state_dict()[key], value), key


def test_the_exported_encoder_fits_a_fine_tuning_network(name, tmp_path):
    method = micro.method(name)
    micro.steps(method, 2)
    header = {**micro.header(name), "metrics": {}, "run": {}, "step": 2}
    checkpoint.write(tmp_path / "c.pth", checkpoint.pack(method.encoder, header, [method.citation]))
    loaded = checkpoint.load(tmp_path / "c.pth")
    network = Swin(replace(loaded.encoder_config, drop_path=0.3))
    done = checkpoint.transfer(loaded, network)
    assert done.matched == done.total == len(list(network.parameters()))
    assert set(done.explained) <= {"mask_token"}
    method.eval()
    image = micro.SyntheticCrops(CROP)[0]["crop"][None]
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
            assert ours[term] == pytest.approx(value, rel=2e-3 if step else 1e-4, abs=1e-4), (
                step,
                term,
            )


# -- configs and the registry ----------------------------------------------------------


def test_the_registry_is_the_folder_and_the_documentation(name):
    bases = {"__init__", "method", "distillation", "taught_pair"}
    pages = {path.stem for path in (REPOSITORY / "nnssl" / "methods").glob("*.py")} - bases
    documented = {path.stem for path in (REPOSITORY / "documentation" / "methods").glob("*.md")} - {
        "README"
    }
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


IMPOSSIBLE = {
    "byol": [
        ({"teacher_momentum": 2.0}, "teacher_momentum must be from 0 to 1, got 2"),
        ({"head_out": 0}, "head_out must be at least 1, got 0"),
    ],
    "cpc": [
        ({"cubes": 1}, "cubes must be at least 2"),
        ({"ahead": 3}, "ahead must be 1 to 2 .one less than cubes.*got 3"),
        ({"ahead": -1}, "got -1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"head_hidden": 0}, "head_hidden must be at least 1, got 0"),
    ],
    "dino": [
        ({"pooled_maps": 0}, "within 1 and the encoder's 5 maps, got 0"),
        ({"pooled_maps": 6}, "within 1 and the encoder's 5 maps, got 6"),
        ({"local_views": -1}, "0 or more, got -1"),
        ({"global_side": 1.2}, "at most 1, got 1.2"),
        ({"local_side_low": 0.7}, "must hold, got 0.7 and 0.6"),
        ({"export": "both"}, "teacher or student, got 'both'"),
        ({"student_temperature": 0.0}, "student_temperature must be above 0, got 0.0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum must be from 0 to 1, got 1.5"),
        ({"prototypes": 1}, "prototypes must be at least 2, got 1"),
        ({"head_bottleneck": 0}, "head_bottleneck must be at least 1, got 0"),
        ({"freeze_prototypes": 1}, "a fraction of the run's steps, from 0 to below 1, got 1"),
        ({"temperature_warmup": 30}, "temperature_warmup must be from 0 to 1, got 30"),
    ],
    "ibot": [
        ({"mask_block": 8}, r"\(16, 32\), got 8"),
        ({"mask_chance": 0.4}, "within 0.5 and 1, so that each scan hides something, got 0.4"),
        ({"mask_ratio": 0.1}, "got 0.1 and 0.2"),
        ({"mask_ratio": 1.0, "mask_spread": 0.0}, "got 1.0 and 0.0"),
        ({"mask_ratio": math.nan}, "got nan and 0.2"),
        ({"w_image": 0.0, "w_patch": 0.0}, "one of w_image, w_patch must be above 0"),
        ({"local_views": -1}, "0 or more, got -1"),
        ({"centre_momentum": -0.1}, "from 0 to 1, got -0.1"),
    ],
    "mocov3": [
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"queue": -1}, "queue must be a number of keys"),
        ({"teacher_momentum": 1.5}, "teacher_momentum must be from 0 to 1"),
        ({"head_hidden": -1}, "head_hidden must be at least 1, got -1"),
    ],
    "parcels": [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"decoder": "unet"}, "unknown decoder 'unet'"),
        ({"published": True}, "parcels has no published settings"),
    ],
    "rotation": [
        ({"window_jitter": 7.0}, "window_jitter must be from 0 to 1, got 7"),
        ({"classes": 6}, "0 .all., 4, 10 or 24, got 6"),
        ({"blur": -1.0}, "from 0 to 10, got -1"),
        ({"blur": math.nan}, "got nan"),
    ],
    "simclr": [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"queue": -1}, "queue must be a number of embeddings"),
        ({"head_out": 0}, "head_out must be at least 1, got 0"),
    ],
    "simmim": [
        (
            {"mask_block": 12},
            r"mask_block must be a stride of the encoder, \[2, 4, 8, 16, 32\], .* got 12",
        ),
        ({"mask_block": "16x9x8"}, "got 16x9x8"),
        ({"smooth_l1": -1.0}, "smooth_l1 must be 0"),
        ({"decode_from": 64}, r"decode_from must be a stride of the encoder, .*, got 64"),
        ({"mask_ratio": 0.0}, "mask_ratio must be above 0 and below 1, got 0.0"),
        ({"mask_ratio": math.nan}, "mask_ratio must be above 0 and below 1, got nan"),
        ({"window_jitter": -1.0}, "window_jitter must be from 0 to 1, got -1"),
        ({"decoder": "unet"}, "unknown decoder 'unet'; known: "),
    ],
    "smit": [
        ({"decoder": "unet"}, "unknown decoder 'unet'; known: "),
        ({"parcels_decoder": "unet"}, "unknown decoder 'unet'; known: "),
        ({"w_mip": 0.0, "decoder": "light"}, "w_mip=0 predicts no voxels, so decoder=light"),
        ({"w_parcels": 1.0, "classes": 0}, "classes must be at least 2, got 0"),
        ({"mask_block": 12}, r"stride of the encoder, \[2, 4, 8, 16, 32\], .* got 12"),
        ({"mask_block": "16x2x2"}, r"stride of a stage, \[4, 8, 16, 32\], got 16x2x2"),
        ({"patch_tokens": -1}, "patch_tokens must be a number of tokens"),
        ({"teacher_views": 3}, "teacher_views must be 1 or 2, got 3"),
        ({"mask_ratio": 1.0}, "above 0 and below 1, got 1.0"),
        ({"mask_ratio": math.nan}, "above 0 and below 1, got nan"),
        ({"export": "both"}, "teacher or student, got 'both'"),
        ({"w_mip": 0, "w_itd": 0, "w_mpd": 0}, "one of w_mip, w_itd, w_mpd"),
        ({"w_mip": -1.0}, "w_mip must be 0 or more, got -1"),
        ({"w_parcels": -1.0}, "w_parcels must be 0 or more, got -1"),
    ],
    "swinunetr": [
        ({"w_rotation": 0.0, "w_contrast": 0.0, "w_voxels": 0.0}, "w_voxels must be above 0"),
        ({"w_voxels": -1.0}, "w_voxels must be 0 or more, got -1"),
        ({"cut_share": 1.0}, "cut_share must be above 0 and below 1, got 1.0"),
        ({"cut_edge": 0.0}, "cut_edge must be above 0 and below 1, got 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"head_out": 0}, "head_out must be at least 1, got 0"),
    ],
}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [(method, *row) for method, rows in IMPOSSIBLE.items() for row in rows],
)
def test_impossible_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        micro.config(method, **settings)
