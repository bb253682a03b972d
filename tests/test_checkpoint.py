"""The file between pretraining and nnU-Net: whole, strict, harmless, and readable by upstream."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch

from nnssl import checkpoint, files
from nnssl.checkpoint import CheckpointError, TransferError
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin

CONFIG = SwinConfig(embed_dim=6, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
RUN = {"steps": 10, "batch_size": 4, "seed": 0}


def swin(maskable: bool = False, seed: int = 0, **changes) -> Swin:
    torch.manual_seed(seed)
    return Swin(replace(CONFIG, **changes), maskable=maskable)


def content(encoder: Swin | None = None, **changes) -> dict:
    header = {
        **micro.header(),
        "run": RUN,
        "method_config": {"lr": 6e-4},
        "metrics": {"total": 1.5},
        "step": 10,
    }
    return checkpoint.pack(encoder or swin(maskable=True), {**header, **changes}, ["Author 2022"])


@pytest.fixture
def path(tmp_path) -> Path:
    checkpoint.write(tmp_path / "checkpoint_final.pth", content())
    return tmp_path / "checkpoint_final.pth"


# -- to disk and back ------------------------------------------------------------------


def test_round_trip(path):
    loaded = checkpoint.load(path)
    encoder = swin(maskable=True)
    assert set(loaded.weights) == {f"encoder.{name}" for name in encoder.state_dict()}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.weights[f"encoder.{name}"], tensor), name
    assert loaded.encoder_config == CONFIG
    assert loaded.method == "smit"
    assert loaded.spacing == (3.0, 2.0, 2.0)
    assert loaded.crop == micro.CROP
    assert (loaded.hu.low, loaded.hu.high, loaded.hu.mean, loaded.hu.std) == (-1000, 1000, 40, 250)
    assert loaded.citations == ["Author 2022"]
    assert loaded.sha256 == files.sha256(path)


def test_the_file_holds_tensors_and_plain_values_only(path):
    read = torch.load(path, weights_only=True)
    assert read["format_version"] == checkpoint.FORMAT_VERSION
    assert json.loads(json.dumps(read["header"])) == read["header"]
    assert json.loads(json.dumps(read["nnssl_adaptation_plan"])) == read["nnssl_adaptation_plan"]


def test_a_resumable_file_is_also_loaded_without_executing_anything(tmp_path):
    run = micro.run(tmp_path)
    run.step = 1
    run.save({})
    read = torch.load(tmp_path / "checkpoint_latest.pth", weights_only=True)
    assert set(read) == checkpoint.KEYS | {"training_state"}
    assert checkpoint.load(tmp_path / "checkpoint_latest.pth").header["step"] == 1


def test_weights_are_copies_on_the_cpu():
    encoder = swin()
    packed = content(encoder)
    with torch.no_grad():
        encoder.patch_embed.proj.weight.zero_()
    stored = packed["network_weights"]["encoder.patch_embed.proj.weight"]
    assert float(stored.abs().sum()) > 0
    assert stored.device.type == "cpu"
    assert not stored.requires_grad


def test_names_are_pinned(path):
    """Released checkpoints hold these names: a change here needs another FORMAT_VERSION."""
    anchors = {
        "encoder.mask_token": (6,),
        "encoder.patch_embed.proj.weight": (6, 1, 2, 2, 2),
        "encoder.patch_embed.proj.bias": (6,),
        "encoder.patch_embed.norm.weight": (6,),
        "encoder.layers1.0.blocks.0.norm1.weight": (6,),
        "encoder.layers1.0.blocks.0.attn.qkv.weight": (18, 6),
        "encoder.layers1.0.blocks.0.attn.qkv.bias": (18,),
        "encoder.layers1.0.blocks.0.attn.proj.weight": (6, 6),
        "encoder.layers1.0.blocks.0.attn.relative_position_bias_table": (343, 1),
        "encoder.layers1.0.blocks.0.norm2.bias": (6,),
        "encoder.layers1.0.blocks.0.mlp.linear1.weight": (24, 6),
        "encoder.layers1.0.blocks.0.mlp.linear2.weight": (6, 24),
        "encoder.layers4.0.downsample.norm.weight": (384,),
        "encoder.layers4.0.downsample.reduction.weight": (96, 384),
    }
    read = torch.load(path, weights_only=True)
    assert set(read) == {
        "format_version",
        "header",
        "network_weights",
        "nnssl_adaptation_plan",
        "citations",
    }
    assert {name: tuple(read["network_weights"][name].shape) for name in anchors} == anchors
    assert {
        "method",
        "preset",
        "crop",
        "plan",
        "encoder",
        "run",
        "method_config",
        "metrics",
        "step",
    } <= set(read["header"])
    assert {"name", "fingerprint", "spacing", "hu", "cases"} == set(read["header"]["plan"])


def test_what_upstreams_like_nnssl_reads(path):
    """The look-ups of nnunetv2/experiment_planning/like_nnssl.py (upstream's main branch), one by
    one.
    """
    read = torch.load(path, weights_only=True, map_location="cpu")
    plan = read["nnssl_adaptation_plan"]
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert configuration["spacing"] == [3.0, 2.0, 2.0]
    assert configuration["patch_size"] == list(micro.CROP)
    architecture = plan["architecture_plans"]
    assert architecture.pop("arch_class_name") == "nnssl.network.swin_unetr.SwinUNETR"
    assert architecture.pop("arch_kwargs_requiring_import") == []
    assert SwinConfig.from_dict(architecture["arch_kwargs"]["encoder"]) == CONFIG
    weights = read["network_weights"]
    for key in [plan["key_to_encoder"], plan["key_to_stem"], *plan["keys_to_in_proj"]]:
        assert any(name.startswith(f"{key}.") for name in weights), key
    assert plan["key_to_lpe"] is None
    assert plan["pretrain_num_input_channels"] == 1
    assert plan["recommended_downstream_patchsize"] == list(micro.CROP)
    assert read["citations"] == ["Author 2022"]


def test_the_network_named_in_the_plan_can_be_built(path):
    from pydoc import locate

    architecture = torch.load(path, weights_only=True)["nnssl_adaptation_plan"][
        "architecture_plans"
    ]
    network = locate(architecture["arch_class_name"])(1, 2, **architecture["arch_kwargs"])
    assert checkpoint.transfer(checkpoint.load(path), network.encoder).matched > 0


# -- what never reaches a file ---------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    encoder = swin()
    with torch.no_grad():
        encoder.layers2[0].blocks[0].mlp.linear1.bias[3] = bad
    with pytest.raises(
        CheckpointError, match=r"1 tensors hold NaN.*layers2.0.blocks.0.mlp.linear1.bias.*nothing"
    ):
        content(encoder)


def test_a_header_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        content(metrics={"total": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        content(metrics={"total": torch.tensor(1.0)})


def test_an_interrupted_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def interrupted(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, content())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# -- what is not loaded ----------------------------------------------------------------


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nnssl_pretrain -m smit"):
        checkpoint.load(tmp_path / "none.pth")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint_final.pth cannot be read as a checkpoint: it is truncated",
    ):
        checkpoint.load(path)


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_refused(tmp_path, seed):
    """The reader of pickles fails in many ways on what is none."""
    generator = torch.Generator().manual_seed(seed)
    noise = bytes(torch.randint(256, (1 + 7 * seed,), generator=generator).tolist())
    (tmp_path / "noise.pth").write_bytes((b"", b"\x80\x02", b"PK\x03\x04")[seed % 3] + noise)
    with pytest.raises(CheckpointError, match=r"cannot be read|is not a checkpoint"):
        checkpoint.load(tmp_path / "noise.pth")


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, form):
    bad, trace = tmp_path / "bad.pth", tmp_path / "executed"
    if form == "torch":
        torch.save({**content(), "citations": [Malicious(trace)]}, bad)
    else:
        bad.write_bytes(pickle.dumps({**content(), "citations": [Malicious(trace)]}))
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
        checkpoint.load(bad)
    assert not trace.exists()
    torch.load(bad, weights_only=False) if form == "torch" else pickle.loads(bad.read_bytes())
    assert trace.exists()  # it would have been


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"state_dict": {}},
            r"is not a checkpoint of nnssl_pretrain: it holds \['state_dict'\], expected",
        ),
        ([1, 2], "it holds list, expected"),
        (torch.zeros(3), "it holds Tensor, expected"),
    ],
)
def test_other_peoples_files_are_refused(tmp_path, other, message):
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "other.pth")


def test_a_header_without_what_the_weights_need_is_refused(tmp_path):
    packed = content()
    del packed["header"]["plan"]
    torch.save(packed, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="has a header that lacks some of"):
        checkpoint.load(tmp_path / "short.pth")


def test_another_version_is_refused(tmp_path):
    torch.save({**content(), "format_version": 99}, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match="has format version 99, this installation reads 1"):
        checkpoint.load(tmp_path / "new.pth")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"encoder.a": torch.zeros(1), "decoder.b": torch.zeros(1)},
            r"not the encoder's: \['decoder.b'\]",
        ),
        ({"encoder.a": 3}, "network_weights that are not tensors"),
        ([1], "network_weights that are not tensors by name"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, weights, message):
    torch.save({**content(), "network_weights": weights}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "odd.pth")


# -- into a network --------------------------------------------------------------------


def test_transfer_sets_every_tensor_and_explains_the_rest(path):
    network = swin(seed=1)
    done = checkpoint.transfer(checkpoint.load(path), network)
    assert done.matched == done.total == len(list(network.parameters()))
    assert set(done.explained) == {"mask_token"}
    assert "pretraining only" in done.explained["mask_token"]
    for name, tensor in swin(maskable=True).state_dict().items():
        if name != "mask_token":
            assert torch.equal(network.state_dict()[name], tensor), name


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_equal_channels_give_what_one_gave(path, channels):
    loaded = checkpoint.load(path)
    one, several = swin(seed=1).eval(), swin(seed=2, in_channels=channels).eval()
    checkpoint.transfer(loaded, one)
    done = checkpoint.transfer(loaded, several)
    assert done.matched == done.total
    assert (
        done.explained["patch_embed.proj.weight"] == f"inflated from 1 to {channels} input channels"
    )
    image = micro.SyntheticCrops((16, 16, 16))[0]["crop"][None]
    for ours, theirs in zip(several(image.repeat(1, channels, 1, 1, 1)), one(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "lines"),
    [
        (
            {"depths": (2, 1, 1, 1)},
            ["missing in the file: layers1.0.blocks.1.attn.qkv.weight"],
        ),
        (
            {"qkv_bias": False},
            ["unexpected in the file: layers4.0.blocks.0.attn.qkv.bias"],
        ),
        (
            {"window": 3},
            [
                "other shape: layers1.0.blocks.0.attn.relative_position_bias_table is (343, 1) in "
                "the file, (125, 1) in"
            ],
        ),
        (
            {"spatial_dims": 2},
            [
                "other shape: patch_embed.proj.weight is (6, 1, 2, 2, 2) in the file, (6, 1, 2, 2) "
                "in"
            ],
        ),
    ],
)
def test_a_mismatch_is_listed_and_nothing_is_loaded(path, network, lines):
    encoder = swin(seed=1, **network)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(
        TransferError, match="does not fit the network; nothing was loaded"
    ) as error:
        checkpoint.transfer(checkpoint.load(path), encoder)
    assert all(line in str(error.value) for line in lines), str(error.value)
    assert "'depths': [1, 1, 1, 1]" in str(error.value)  # what the checkpoint's encoder is
    for name, tensor in before.items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_a_long_list_is_cut(path):
    with pytest.raises(TransferError, match=r"\.\.\. and \d+ more"):
        checkpoint.transfer(checkpoint.load(path), swin(embed_dim=8))


@pytest.mark.parametrize(("channels", "labels"), [(3, 0), (1, 0), (5, 2), (2, 1)])
def test_a_first_layer_for_several_channels_fits_only_as_many(tmp_path, channels, labels):
    checkpoint.write(tmp_path / "c.pth", content(swin(in_channels=2)))
    network = swin(seed=1, in_channels=channels)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    message = (
        rf"pretrained on 2 channels, but this image has {channels - labels}; nothing was loaded"
        r"(.|\n)*-tr SwinScratch"
    )
    with pytest.raises(TransferError, match=message):
        checkpoint.transfer(checkpoint.load(tmp_path / "c.pth"), network, labels)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("given", "images"), [(1, 1), (1, 2), (2, 2)])
def test_a_cascades_labels_change_nothing_at_first(tmp_path, given, images):
    """The encoder sees what it saw without them; their weights learn from there."""
    checkpoint.write(tmp_path / "c.pth", content(swin(in_channels=given)))
    alone, cascaded = (
        swin(seed=1, in_channels=images).eval(),
        swin(seed=2, in_channels=images + 3).eval(),
    )
    loaded = checkpoint.load(tmp_path / "c.pth")
    checkpoint.transfer(loaded, alone)
    done = checkpoint.transfer(loaded, cascaded, labels=3)
    assert "3 channels of labels start at zero" in done.explained["patch_embed.proj.weight"]
    image, labels = (
        torch.randn(1, images, 16, 16, 16),
        torch.randint(0, 2, (1, 3, 16, 16, 16)).float(),
    )
    maps = cascaded(torch.cat([image, labels], dim=1))
    for ours, theirs in zip(maps, alone(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    maps[0].square().mul(torch.randn_like(maps[0])).sum().backward()
    assert float(cascaded.patch_embed.proj.weight.grad[:, images:].abs().sum()) > 0


# -- what is shown ---------------------------------------------------------------------


def test_the_description_tells_what_a_user_must_know(path):
    text = checkpoint.describe(checkpoint.load(path))
    wanted = [
        str(path),
        files.sha256(path),
        "smit",
        "embed_dim 6",
        "made, 6 scans",
        "0123456789ab",
        "3 x 2 x 2 mm",
    ]
    wanted += [
        "16 x 16 x 16 voxels",
        "[-1000, 1000]",
        "step 10 of 10",
        "4 scans per step",
        "total 1.5",
        "Author 2022",
    ]
    assert [part for part in wanted if part not in text] == []
