"""What is read from an encoder: the right tokens, the right distances, from nnU-Net's own files."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from math import prod

import numpy as np
import pytest
import torch
from synthetic_checkpoints import pretrained as write_pretrained
from synthetic_plans import nnunet_plans

from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.finetune.architecture import architecture
from nnssl.hu import HUPolicy
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.measurement import attention_distance, features
from nnssl.study.measurement.attention_distance import AttentionDistance
from nnssl.study.measurement.features import Layers
from nnssl.study.rows import AttentionRow

CONFIG = SwinConfig(embed_dim=12, depths=(2, 2, 2, 1), heads=(1, 2, 2, 3), window=2)
STRIDES = [(2,) * 3, (2,) * 3, (2,) * 3, (4,) * 3, (4,) * 3, (8,) * 3, (8,) * 3, (16,) * 3]


def network(seed: int = 0, axes: list[int] | None = None, **config) -> SwinUNETR:
    torch.manual_seed(seed)
    encoder = SwinConfig(**{**asdict(CONFIG), **config})
    net = SwinUNETR(1, 3, encoder=encoder.to_dict(), decoder="light", axes=axes)
    for name, parameter in net.named_parameters():
        if "weight" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # far from the identity that a Swin starts as
    return net.eval()


def synthetic_crops(count: int = 3, size: tuple[int, ...] = (32, 32, 32)) -> list[torch.Tensor]:
    return [
        torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))
        for seed in range(count)
    ]


def test_the_tokens_that_are_read_are_those_of_the_places():
    """A voxel can change only what is near: a changed corner shows in the corner's token of every
    layer, or not at all in the far corner's of the first ones."""
    net, crop = network(), synthetic_crops(1)[0]
    positions = torch.tensor([[0, 0, 0], [31, 31, 31]])
    layers = Layers(net)
    before = layers.read(crop, positions)
    crop[..., 0, 0, 0] += 5
    after = layers.read(crop, positions)
    assert layers.names == [
        "patch embedding",
        "stage 1 block 1",
        "stage 1 block 2",
        "stage 2 block 1",
        "stage 2 block 2",
        "stage 3 block 1",
        "stage 3 block 2",
        "stage 4 block 1",
    ]
    changed = [(a - b).abs().amax(1) > 1e-6 for a, b in zip(before, after, strict=True)]
    assert all(bool(c[0]) for c in changed)
    assert not any(bool(c[1]) for c in changed[:5])


@pytest.mark.parametrize("size", [(32, 32, 32), (30, 20, 36)])
def test_a_stages_last_block_is_the_encoders_map(size):
    """`forward` gives every stage's output as a map, layer-normalised, in raster order."""
    net, crop = network(), synthetic_crops(1, size)[0]
    generator = torch.Generator().manual_seed(0)
    positions = features.draw_positions(size, (4, 4, 4), generator)
    found = dict(zip(Layers(net).names, Layers(net).read(crop, positions), strict=True))
    with torch.no_grad():
        maps = net.encoder(crop)
    for stage, depth in enumerate(CONFIG.depths):
        tokens = found[f"stage {stage + 1} block {depth}"]
        where = (positions // 2 ** (stage + 1)).T
        expected = maps[stage][0][:, where[0], where[1], where[2]].T
        normalised = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
        assert torch.allclose(normalised, expected, atol=1e-4)


def test_places_lie_in_different_tokens_and_inside():
    positions = features.draw_positions(
        (20, 33, 16), (16, 16, 16), torch.Generator().manual_seed(0)
    )
    assert len({tuple(cell) for cell in (positions // 16).tolist()}) == len(positions) == 2 * 3 * 1
    assert (positions < torch.tensor([20, 33, 16])).all()
    assert (
        len(features.draw_positions((96, 96, 96), (8, 8, 8), torch.Generator()))
        == features.POSITIONS
    )


def test_an_encoder_is_like_itself_and_less_like_another():
    one, other = network(0), network(1)
    row = features.cka_row(
        "t",
        "a pretrained",
        one,
        "a 2",
        copy.deepcopy(one),
        synthetic_crops(4, (48, 48, 32)),
        seed=0,
    )
    diagonal = np.diag(np.array(row.values))
    assert diagonal == pytest.approx(1, abs=1e-4)
    assert row.rows == row.columns == Layers(one).names
    assert row.volumes == 4
    less = features.cka_row(
        "t", "a pretrained", one, "b 2", other, synthetic_crops(4, (48, 48, 32)), seed=0
    )
    assert np.diag(np.array(less.values)).mean() < 0.9
    json.dumps(less.to_json(), allow_nan=False)


def test_a_crop_too_small_for_cka_is_refused():
    with pytest.raises(ValueError, match=r"has 1 token.*use a larger patch"):
        features.cka_row(
            "t", "a", network(), "b", network(), synthetic_crops(1, (16, 16, 16)), seed=0
        )


def test_cka_keeps_no_volume():
    """The features of a crop are gone when the next one is read."""
    import weakref

    references = []

    def one_by_one():
        for number in range(5):
            crop = synthetic_crops(number + 1)[-1]
            references.append(weakref.ref(crop))
            yield crop
            del crop
            assert sum(reference() is not None for reference in references) <= 2

    row = features.cka_row("t", "a", network(), "b", network(1), one_by_one(), seed=0)
    assert row.volumes == 5


def silence(net: SwinUNETR) -> None:
    """Attention that is the same for all tokens."""
    for stage in net.encoder.stages:
        for block in stage.blocks:
            for parameter in (
                *block.attn.qkv.parameters(),
                block.attn.relative_position_bias_table,
            ):
                torch.nn.init.zeros_(parameter)


def measured(
    net: SwinUNETR, size: tuple[int, ...], spacing=(3.0, 1.0, 1.0)
) -> dict[tuple[str, int], AttentionRow]:
    rows = features.attention_rows("t", "a", 2, 0, net, spacing, synthetic_crops(1, size))
    return {(row.layer, row.head): row for row in rows}


def test_even_attention_has_the_windows_mean_distance():
    net = network()
    silence(net)
    rows = measured(net, (32, 32, 32))
    steps = np.array(list(np.ndindex(2, 2, 2)))
    unit = np.linalg.norm((steps[:, None] - steps[None]) * [3.0, 1.0, 1.0], axis=-1).mean()
    for stage, heads in enumerate(CONFIG.heads[:3]):
        for head in range(1, heads + 1):
            row = rows[(f"stage {stage + 1} block 1", head)]
            assert [row.mm, row.uniform_mm] == pytest.approx(
                [unit * 2 ** (stage + 1)] * 2, abs=1e-3
            )


@pytest.mark.parametrize("size", [(32, 32, 32), (28, 24, 20)])
def test_shifted_windows_and_padding_as_counted_one_by_one(size):
    """The second block of stage 1: windows shifted by one, cut at the border of the grid."""
    net = network()
    silence(net)
    rows = measured(net, size)
    grid = [n // 2 for n in size]
    # of every token, the tokens along the axis in its window: pairs after the first one
    by_axis = []
    for n in grid:
        window = [(i + 1) // 2 for i in range(n)] if n > 2 else [0] * n
        by_axis.append([[j for j in range(n) if window[j] == window[i]] for i in range(n)])
    far = []
    for position in np.ndindex(*grid):
        others = (
            np.array(np.meshgrid(*(by_axis[a][position[a]] for a in range(3)), indexing="ij"))
            .reshape(3, -1)
            .T
        )
        far.append(np.linalg.norm((others - position) * np.array([6.0, 2.0, 2.0]), axis=1).mean())
    assert rows[("stage 1 block 2", 1)].mm == pytest.approx(np.mean(far), abs=1e-3)


def test_attention_to_oneself_has_no_distance_and_to_the_other_end_has_it_all():
    net = network()
    silence(net)
    table = net.encoder.stages[0].blocks[0].attn.relative_position_bias_table
    with torch.no_grad():
        table[(len(table) - 1) // 2] = 50.0  # offset 0
    assert measured(net, (32, 32, 32))[("stage 1 block 1", 1)].mm == pytest.approx(0, abs=1e-3)
    silence(net)
    with torch.no_grad():
        # offsets (-1, -1, -1) and (1, 1, 1): two of a window's eight tokens find their other end
        table[[0, -1]] = 50.0
    diagonal, others = np.linalg.norm([6, 2, 2]), 6 / 8
    steps = np.array(list(np.ndindex(2, 2, 2)))
    even = np.linalg.norm((steps[:, None] - steps[None]) * [6.0, 2.0, 2.0], axis=-1).mean(axis=1)
    expected = diagonal / 4 + others * even.mean()
    assert measured(net, (32, 32, 32))[("stage 1 block 1", 1)].mm == pytest.approx(
        expected, abs=1e-2
    )


def test_the_weights_are_those_that_the_encoder_uses():
    encoder = network().encoder
    block, recorded = encoder.stages[0].blocks[1], {}
    block.attn.register_forward_hook(
        lambda module, inputs, output: recorded.update(inputs=inputs, output=output)
    )
    with torch.no_grad():
        encoder(synthetic_crops(1)[0])
        x, partition, relative = recorded["inputs"]
        windows = x.view(-1, prod(partition.size), x.shape[-1])
        by_head = attention_distance.weights(
            block.attn, windows, relative, partition.mask.patterns[partition.mask.which]
        )
        values = (
            block.attn.qkv(windows)
            .chunk(3, -1)[2]
            .unflatten(-1, (by_head.shape[1], -1))
            .transpose(1, 2)
        )
        joined = block.attn.proj((by_head @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(joined.view(recorded["output"].shape), recorded["output"], atol=1e-4)


def test_spacing_follows_the_axes_of_the_encoder():
    """nnU-Net gives (x, z, y) with its spacing; the encoder sees (z, y, x)."""
    straight, permuted = network(), network(axes=[2, 0, 1])
    crop = synthetic_crops(1, (32, 24, 28))[0]
    expected = features.attention_rows("t", "a", 2, 0, straight, (3.0, 1.0, 2.0), [crop])
    moved = crop.permute(0, 1, *(2 + axis for axis in (2, 0, 1)))
    assert features.attention_rows("t", "a", 2, 0, permuted, (2.0, 3.0, 1.0), [moved]) == expected


def test_two_dimensions():
    net = network(spatial_dims=2)
    rows = features.attention_rows(
        "t", "a", "all", 0, net, (1.5, 1.5), synthetic_crops(2, (64, 64))
    )
    assert {row.layer for row in rows} == set(Layers(net).names[1:])
    row = features.cka_row(
        "t", "a", net, "b", network(1, spatial_dims=2), synthetic_crops(2, (64, 64)), seed=0
    )
    assert np.isfinite(np.array(row.values)).all()


def test_hooks_are_taken_away():
    encoder = network().encoder
    with pytest.raises(RuntimeError, match="stop"), AttentionDistance(encoder, (1.0, 1.0, 1.0)):
        raise RuntimeError("stop")
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in encoder.modules()
    )


def fold_of_nnunet(folder, net: SwinUNETR, entry: dict):
    """checkpoint_final.pth with what nnU-Net's trainer saves and we read."""
    plans = nnunet_plans()
    plans["configurations"]["3d_fullres"]["architecture"] = entry
    arguments = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": {}}
    folder.mkdir()
    torch.save(
        {"network_weights": net.state_dict(), "init_args": arguments},
        folder / "checkpoint_final.pth",
    )
    return folder


def test_a_fold_of_nnunet_and_the_checkpoint_it_started_from(tmp_path):
    plans = nnunet_plans()
    hu = HUPolicy(-900.0, 1100.0, -40.0, 310.0)
    entry = architecture(plans, plans["configurations"]["3d_fullres"], CONFIG, "light", hu)
    torch.manual_seed(0)
    net = SwinUNETR(1, 4, True, **entry["arch_kwargs"])
    read = features.finetuned(fold_of_nnunet(tmp_path / "fold_0", net, entry))
    assert not read.training
    assert {name: t.tolist() for name, t in read.encoder.intensity.state_dict().items()} == {
        name: t.tolist() for name, t in net.encoder.intensity.state_dict().items()
    }
    crop = synthetic_crops(1)[0]
    net.eval()
    net.decoder.deep_supervision = False
    assert torch.equal(read(crop), net(crop))
    path = write_pretrained(tmp_path, CONFIG, seed=5)
    before = features.pretrained(path, like=read)
    torch.manual_seed(5)
    assert torch.equal(
        before.encoder.patch_embed.proj.weight, Swin(CONFIG, maskable=True).patch_embed.proj.weight
    )
    assert not torch.equal(
        read.encoder.patch_embed.proj.weight, before.encoder.patch_embed.proj.weight
    )


def test_another_network_and_an_unfinished_fold_are_refused(tmp_path):
    entry = nnunet_plans()["configurations"]["3d_fullres"]["architecture"]
    with pytest.raises(ValueError, match="holds a PlainConvUNet"):
        features.finetuned(fold_of_nnunet(tmp_path / "fold_0", network(), entry))
    with pytest.raises(FileNotFoundError, match=r"checkpoint_final\.pth is missing"):
        features.finetuned(tmp_path / "fold_1")


def test_crops_of_preprocessed_cases(tmp_path):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for name, seed in (("a", 0), ("b", 1)):
        data = np.random.default_rng(seed).normal(size=(1, 20, 30, 24)).astype(np.float32)
        labels = np.zeros((1, 20, 30, 24), np.int8)
        labels[0, 18, 2, 3] = 1
        nnUNetDatasetBlosc2.save_case(data, labels, {}, str(tmp_path / name))
    crops = list(features.crops(tmp_path, ["a", "b"], (16, 16, 32), count=3))
    assert [tuple(crop.shape) for crop in crops] == [(1, 1, 16, 16, 32)] * 3
    whole = torch.tensor(np.random.default_rng(0).normal(size=(1, 20, 30, 24)).astype(np.float32))
    assert torch.equal(crops[0][0, ..., :24], whole[:, 4:20, 0:16])
    assert torch.equal(crops[0], crops[2])
    assert not crops[0][..., 24:].any()
    (flat,) = features.crops(tmp_path, ["b"], (16, 16), count=1)
    assert flat.shape == (1, 1, 16, 16)
