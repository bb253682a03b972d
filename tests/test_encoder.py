"""The Swin encoder: equal to MONAI's, blind to what is hidden, and as the contract says."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from nnssl.bench.encoder import monai_swin
from nnssl.encoder import stage_inputs
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.stage_inputs import draw_drop_path_scales
from nnssl.encoder.swin import Swin


def small(**changes: object) -> SwinConfig:
    """12 channels, one plain and one shifted block a stage."""
    return SwinConfig(
        **({"embed_dim": 12, "depths": (2, 2, 2, 2), "heads": (1, 2, 3, 4)} | changes)
    )


def seeded(config: SwinConfig, **options: bool) -> Swin:
    """A Swin whose every parameter matters: biases and tables far from zero."""
    torch.manual_seed(0)
    encoder = Swin(config, **options)
    for name, parameter in encoder.named_parameters():
        if name.endswith(("bias", "bias_table", "mask_token")):
            torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def monai_twin(encoder: Swin) -> SwinTransformer:
    """MONAI's encoder with the weights of `encoder`."""
    twin = monai_swin(encoder.config)
    missing, unexpected = twin.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return twin


def image(config: SwinConfig, shape: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(
        batch, config.in_channels, *shape, generator=torch.Generator().manual_seed(1)
    )


def gradients(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of all five maps, by parameter and for the image."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    generator = torch.Generator().manual_seed(2)
    sum((m * torch.randn(m.shape, generator=generator)).sum() for m in model(x)).backward()
    return {"image": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal_models(ours: torch.nn.Module, theirs: torch.nn.Module, x: Tensor) -> None:
    """Maps in single precision; gradients in double, where rounding leaves no excuse."""
    for a, b in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    expected = gradients(theirs.double(), x.double())
    for name, gradient in gradients(ours.double(), x.double()).items():
        difference = (gradient - expected[name]).abs().max() / expected[name].abs().max().clamp(
            min=1e-9
        )
        assert difference < 1e-9, name


# --- MONAI as the oracle -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (32, 32, 16)),  # clipped in stages 3 and 4
        ({}, (24, 12, 20)),  # padded and clipped
        ({}, (33, 18, 11)),  # odd everywhere
        ({"window": 7, "patch_norm": False}, (31, 30, 9)),
        ({"qkv_bias": False, "in_channels": 3}, (16, 16, 16)),
        ({"spatial_dims": 2}, (64, 64)),
        ({"spatial_dims": 2, "window": 7}, (50, 37)),
    ],
)
def test_equals_monai(changes: dict, shape: tuple[int, ...]) -> None:
    encoder = seeded(small(taps="merge", windows="monai", **changes))
    assert_equal_models(encoder, monai_twin(encoder), image(encoder.config, shape))


@pytest.mark.parametrize(("dims", "window", "size"), [(3, 2, 32), (2, 4, 64)])
def test_exact_windows_equal_monai_where_it_neither_clips_nor_pads(
    dims: int, window: int, size: int
) -> None:
    encoder = seeded(small(spatial_dims=dims, window=window, taps="merge"))
    assert_equal_models(
        encoder, monai_twin(encoder), image(encoder.config, (size,) * dims, batch=1)
    )


def test_the_smit_preset_equals_monai() -> None:
    encoder = seeded(preset("smit", taps="merge", windows="monai", drop_path=0.0))
    x = image(encoder.config, (16, 16, 24), batch=1)
    with torch.no_grad():
        for ours, theirs in zip(encoder(x), monai_twin(encoder)(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_stage_taps_are_what_monais_stages_give_before_merging() -> None:
    encoder = seeded(small(windows="monai"))
    twin, x = monai_twin(encoder), image(encoder.config, (32, 16, 16))
    before = []
    for stage in (twin.layers1, twin.layers2, twin.layers3, twin.layers4):
        stage[0].downsample.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    last = twin(x)[4]
    for ours, theirs in zip(encoder(x), before, strict=False):
        theirs = F.layer_norm(theirs, theirs.shape[-1:]).movedim(-1, 1)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(x)[4], last, rtol=1e-5, atol=1e-5)


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "shape"), [(3, (16, 17, 12)), (2, (32, 31))])
def test_hidden_voxels_do_not_reach_any_map(dims: int, shape: tuple[int, ...]) -> None:
    encoder = seeded(small(spatial_dims=dims), maskable=True)
    x = image(encoder.config, shape).requires_grad_()
    masked = (
        torch.rand(2, *encoder.token_grid(shape), generator=torch.Generator().manual_seed(3)) < 0.6
    )
    sum(m.square().sum() + m.sum() for m in encoder(x, masked)).backward()
    hidden = (
        F.interpolate(masked[:, None].float(), scale_factor=2)[(..., *(slice(s) for s in shape))]
        > 0
    )
    assert x.grad[hidden].abs().max() == 0
    assert (x.grad[~hidden].abs() > 0).float().mean() > 0.99
    assert encoder.mask_token.grad.abs().max() > 0


def test_hiding_nothing_changes_nothing_and_hiding_all_forgets_the_image() -> None:
    encoder = seeded(small(), maskable=True)
    x = image(encoder.config, (16, 16, 16))
    nothing = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    for a, b in zip(encoder(x, nothing), encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(encoder(x, ~nothing), encoder(-x, ~nothing), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_masks_that_do_not_fit_are_refused() -> None:
    encoder, x = Swin(small(), maskable=True), torch.zeros(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"token grid \(1, 8, 8, 8\)"):
        encoder(x, torch.zeros(1, 16, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        encoder(x, torch.zeros(1, 8, 8, 8))
    with pytest.raises(ValueError, match="maskable=True"):
        Swin(small())(x, torch.zeros(1, 8, 8, 8, dtype=torch.bool))
    assert not any("mask_token" in name for name in Swin(small()).state_dict())


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", ["stage", "merge"])
@pytest.mark.parametrize(
    "shape", [(16, 16, 16), (17, 33, 20), (2, 2, 2), (1, 40, 16), (64, 48), (37, 1)]
)
def test_any_size_gives_maps_of_the_published_channels_and_strides(
    shape: tuple[int, ...], taps: str
) -> None:
    encoder = seeded(small(spatial_dims=len(shape), taps=taps))
    with torch.no_grad():
        maps = encoder(image(encoder.config, shape))
    assert encoder.strides == (2, 4, 8, 16, 32)
    assert encoder.channels == (12, 24, 48, 96, 192)
    for m, c, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert m.shape == (2, c, *(-(-s // stride) for s in shape))
        assert m.isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
def test_every_parameter_gets_a_gradient_from_the_five_maps(dims: int) -> None:
    encoder = seeded(small(spatial_dims=dims), maskable=True)
    masked = torch.rand(2, *(16,) * dims) < 0.5
    maps = encoder(image(encoder.config, (32,) * dims), masked)
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    silent = [
        name
        for name, p in encoder.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert silent == []


@pytest.mark.parametrize("shape", [(16, 16, 16), (18, 21, 10)])
def test_a_batch_equals_its_samples_one_by_one(shape: tuple[int, ...]) -> None:
    encoder = seeded(small(), maskable=True)
    x = image(encoder.config, shape, batch=3)
    masked = torch.rand(3, *encoder.token_grid(shape)) < 0.5
    singles = [encoder(x[i : i + 1], masked[i : i + 1]) for i in range(3)]
    for together, *alone in zip(encoder(x, masked), *singles, strict=True):
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_checkpointing_changes_neither_maps_nor_gradients() -> None:
    plain = seeded(small(drop_path=0.3)).train()
    recomputing = Swin(plain.config, checkpointing=True).train()
    recomputing.load_state_dict(plain.state_dict())
    x = image(plain.config, (18, 20, 9))
    torch.manual_seed(5)
    expected = gradients(plain, x)
    torch.manual_seed(5)
    for name, gradient in gradients(recomputing, x).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_drop_path_is_random_in_training_and_absent_in_evaluation() -> None:
    encoder, x = seeded(small(drop_path=0.5)), image(small(), (16, 16, 16))
    sure = seeded(small())
    with torch.no_grad():
        assert not torch.equal(encoder.train()(x)[4], encoder(x)[4])
        for a, b in zip(encoder.eval()(x), sure.train()(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    scales = draw_drop_path_scales((0.25, 0.0), torch.ones(4000, 3, 2))
    assert scales.shape == (2, 4000, 1, 1)
    assert scales[0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert scales[0].mean().item() == pytest.approx(1, abs=0.03)
    assert scales[1].unique().tolist() == [1]


def test_compiles_into_one_graph_with_equal_results() -> None:
    """fullgraph=True raises on any break; the compiled path (PyTorch's own attention) equals the
    cached one.
    """
    torch._dynamo.reset()
    encoder = seeded(small(depths=(2, 1, 1, 1)))
    x = image(encoder.config, (20, 9, 16), batch=1)
    expected = gradients(encoder, x)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for a, b in zip(compiled(x), encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients(compiled, x).items():
        difference = gradient - expected[name.removeprefix("_orig_mod.")]
        assert difference.abs().max() / gradient.abs().max() < 1e-4, name


def test_a_first_call_in_inference_mode_does_not_spoil_training() -> None:
    encoder, x = seeded(small()), image(small(), (22, 6, 6))
    with torch.inference_mode():
        encoder(x)
    assert gradients(encoder, x)["image"].abs().max() > 0


def test_runs_under_bf16_autocast() -> None:
    encoder, x = seeded(small()), image(small(), (20, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        maps = encoder(x)
        sum(m.float().square().mean() for m in maps).backward()
    for a, b in zip(maps, encoder(x), strict=True):
        assert (a.float() - b).abs().mean() < 0.05
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[B 1 Z Y X\], got \(1, 2, 16, 16, 16\)"):
        Swin(small())(torch.zeros(1, 2, 16, 16, 16))
    with pytest.raises(ValueError, match=r"takes \[B 1 Y X\]"):
        Swin(small(spatial_dims=2))(torch.zeros(1, 1, 16, 16, 16))


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dims", [2, 3])
def test_configurations_survive_json(name: str, dims: int) -> None:
    config = preset(name, dims, windows="monai")
    assert SwinConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.spatial_dims == dims


def test_what_a_configuration_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"unknown encoder option.*feature_size; known: spatial_dims"
    ):
        SwinConfig.from_dict({"feature_size": 48})
    with pytest.raises(ValueError, match=r"unknown preset 'swin'; known: tiny, smit"):
        preset("swin")
    with pytest.raises(ValueError, match=r"taps must be one of 'stage', 'merge', got 'skip'"):
        small(taps="skip")
    with pytest.raises(ValueError, match="spatial_dims must be one of 2, 3, got 4"):
        small(spatial_dims=4)
    with pytest.raises(
        ValueError, match=r"stage 2 has 24 channels, which is not a multiple of its 5 heads"
    ):
        small(heads=(1, 5, 3, 4))
    with pytest.raises(ValueError, match="4 positive numbers each"):
        small(depths=(2, 2))
    with pytest.raises(ValueError, match="drop_path < 1, got window=4, in_channels=1, drop_path=1"):
        small(drop_path=1.0)


def test_presets_have_the_published_sizes() -> None:
    """ENCODER figures: 12.36 M, 8.76 M and 8.06 M parameters."""
    with torch.device("meta"):
        millions = {
            name: sum(p.numel() for p in Swin(preset(name)).parameters()) / 1e6 for name in PRESETS
        }
    assert {name: round(m, 2) for name, m in millions.items()} == {
        "tiny": 2.22,
        "smit": 12.36,
        "smit_miccai22": 8.76,
        "monai": 8.06,
    }


@pytest.mark.parametrize("taps", ["stage", "merge"])
def test_maps_that_are_not_wanted_are_left_out(taps: str) -> None:
    encoder = seeded(small(taps=taps))
    x = image(encoder.config, (16, 16, 16))
    passed: list[int] = []
    for number, stage in enumerate(encoder.stages):
        stage.register_forward_hook(lambda *_, number=number: passed.append(number))
    with torch.no_grad():
        every = encoder(x)
        for wanted, stages in (((1,), [0, 1]), ((3, 2), [0, 1, 2, 3]), ((4,), [0, 1, 2, 3])):
            passed.clear()
            found = encoder(x, wanted=wanted)
            assert [n for n, m in enumerate(found) if m is not None] == sorted(wanted)
            assert all(torch.equal(found[n], every[n]) for n in wanted)
            assert passed == (stages if taps == "stage" else list(range(max(wanted))))


def test_both_ways_to_the_gradient_of_the_position_biases_agree() -> None:
    """A sum of scattered numbers on CPUs, a product with ones elsewhere."""
    torch.manual_seed(0)
    index, by_pair = torch.randint(7, (25,)), torch.randn(2, 25, 3, dtype=torch.double)
    product = torch.matmul(stage_inputs._row_indicators(index, 7, torch.double), by_pair)
    torch.testing.assert_close(stage_inputs._row_sums(by_pair, index, 7), product)
