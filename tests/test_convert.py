"""`nnssl_convert`: the file that it writes is a checkpoint of ours, what cannot be used is refused
with the reason.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_foreign as foreign
import torch
from micro import ENCODER
from safetensors.torch import save_file
from synthetic_checkpoints import pretrained
from synthetic_plans import DATASET, nnunet_plans

from nnssl import checkpoint, cli, files, finetune
from nnssl.convert import sources
from nnssl.convert.conversion import ConvertRequest, convert
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.encoder.windows import relative_index
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import architecture
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.plans import derive
from nnssl.recipe import Recipe

SMALL = {"depths": (1, 1, 1, 1), "window_size": (2, 2, 2)}


@pytest.fixture(scope="module")
def swinvit() -> dict:
    return foreign.model_swinvit(foreign.monai(**SMALL))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Save a file, type `nnssl_convert` on it; exit code, what it printed, stderr, and the path of
    the checkpoint.
    """

    def called(content: object, *arguments: str) -> tuple[int, str, str, Path]:
        file, output = tmp_path / "foreign.pt", tmp_path / "checkpoint.pth"
        if not isinstance(content, Path):
            torch.save(content, file)
            content = file
        monkeypatch.setattr(
            sys, "argv", ["nnssl_convert", str(content), "-o", str(output), *arguments]
        )
        code = cli.convert()
        said = capsys.readouterr()
        return code, said.out, said.err, output

    return called


# --- what is written
# -----------------------------------------------------------------------------------------------


def test_the_checkpoint_is_one_of_ours(call, swinvit, monkeypatch, capsys):
    code, out, err, path = call(swinvit)
    assert code == 0, err
    loaded = checkpoint.load(path)
    tensors = len(loaded.weights)
    assert loaded.method == "monai_swinvit"
    assert loaded.spacing == (2.0, 1.5, 1.5)
    assert loaded.crop == (96, 96, 96)
    assert loaded.header["foreign"]["left_out"] == {
        "computed by our encoder, and equal": 4,
        "norm before the head of pretraining": 1,
        "head of pretraining": 3,
    }
    assert set(torch.load(path, weights_only=True)) == checkpoint.KEYS
    for said in (
        "MONAI model_swinvit.pt, 5050 CT; licence of the weights: unstated",
        f"{tensors} of {tensors} tensors from the file",
        "axes (x, y, z) -> (z, y, x)",
        "3 head of pretraining",
        "clip to [-1000, 1000], minus -1000, divided by 2000",
        "Tang et al.",
        f"nnssl_plan -d DATASET -c {path}",
    ):
        assert said in out
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect", str(path)])
    assert cli.inspect() == 0
    assert capsys.readouterr().out.strip() in out


@pytest.mark.parametrize(
    ("network", "saved", "requested"),
    [
        (lambda: foreign.monai(**SMALL, use_v2=True), foreign.voco, ()),
        (lambda: foreign.smit(True, window=2), foreign.smit_10k, ("--hu", "-500", "500")),
        (foreign.timm_swin, lambda network: network.state_dict(), ("--dims", "3")),
    ],
    ids=["voco", "smit", "imagenet"],
)
def test_it_fine_tunes_like_any_other(call, network, saved, requested):
    """Planned, loaded whole, of two channels, and trained: every parameter has a gradient and a
    learning rate.
    """
    code, _, err, path = call(saved(network()), *requested)
    assert code == 0, err
    loaded = checkpoint.load(path)
    plans = nnunet_plans(("CTNormalization", "ZScoreNormalization"))
    plans["pretrain_info"] = checkpoint_choice.pretrain_info(
        checkpoint_choice.CheckpointChoice(path, "a test"), loaded
    )
    entry = architecture(
        plans, finetune.resolve(plans, "3d_fullres"), loaded.encoder_config, "light", loaded.hu
    )
    net = SwinUNETR(2, 3, **entry["arch_kwargs"], deep_supervision=True)
    lines = finetune.load_named_checkpoint(net, plans)
    total = len(list(net.encoder.parameters()))
    assert f"  {total} of {total} encoder tensors matched" in lines
    sum(part.square().mean() for part in net(torch.randn(1, 2, 20, 33, 32))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    groups = finetune.parameter_groups(net, Recipe())
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_all_configurations_of_a_dataset_can_be_planned_with_smit(call, nnunet_env):
    """The 2d one too, which its windows do not exist for."""
    path = call(foreign.smit(window=2).published())[3]
    folder = nnunet_env["nnUNet_preprocessed"] / DATASET
    files.write_json(folder / "nnUNetPlans.json", nnunet_plans())
    request = derive.PlansRequest(
        DATASET, base="nnUNetPlans", name="smit", checkpoint=path, decoder="light"
    )
    plans = files.read_json(derive.derive(request).path)
    encoders = {
        name: SwinConfig.from_dict(
            plans["configurations"][name]["architecture"]["arch_kwargs"]["encoder"]
        )
        for name in ("2d", "3d_fullres")
    }
    assert {name: (e.spatial_dims, e.windows) for name, e in encoders.items()} == {
        "2d": (2, "exact"),
        "3d_fullres": (3, "smit"),
    }


def test_learning_rates_of_what_only_foreign_encoders_have():
    depths = (2, 2, 12, 2)
    names = {
        "encoder.layers1c.0.layer.conv1.conv.weight": 1,
        "encoder.layers3c.0.layer.conv2.conv.weight": 5,
        "encoder.out_norms.0.weight": 2,
        "encoder.out_norms.3.bias": 18,
    }
    assert {name: finetune.layer_of(name, depths) for name in names} == names


def test_an_image_is_turned_into_what_the_weights_saw(call, swinvit):
    """nnU-Net's normalised CT, through the network's own map, is MONAI's ScaleIntensityRange of the
    same HU.
    """
    path = call(swinvit)[3]
    plans = nnunet_plans()
    loaded = checkpoint.load(path)
    entry = architecture(
        plans, finetune.resolve(plans, "3d_fullres"), loaded.encoder_config, "light", loaded.hu
    )
    net = SwinUNETR(1, 2, **entry["arch_kwargs"])
    hu = torch.tensor([-2000.0, -1000.0, -500.0, 0.0, 40.0, 1000.0, 3000.0]).view(1, 1, 1, 1, -1)
    normalised = net.encoder.intensity((hu - 90) / 140)
    torch.testing.assert_close(normalised, ((hu + 1000) / 2000).clamp(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", [s for s in sources.SOURCES if s.range], ids=lambda s: s.name)
def test_known_ranges_become_zero_to_one(source):
    hu = source.policy(source.range)
    assert [hu.normalise(torch.tensor(end)).item() for end in source.range] == pytest.approx([0, 1])


def test_what_the_request_says_is_written(call, swinvit):
    requested = [
        "--hu",
        "-100",
        "300",
        "40",
        "80",
        "--spacing",
        "5",
        "1",
        "1",
        "--crop",
        "64",
        "64",
        "32",
    ]
    loaded = checkpoint.load(call(swinvit, *requested)[3])
    assert (loaded.hu.low, loaded.hu.high, loaded.hu.mean, loaded.hu.std) == (-100, 300, 40, 80)
    assert (loaded.spacing, loaded.crop) == ((5, 1, 1), (64, 64, 32))


def test_without_hu_images_pass_as_nnunet_normalises_them(call, swinvit):
    _, out, _, path = call(swinvit, "--no-hu")
    loaded = checkpoint.load(path)
    assert loaded.hu is None
    assert "images keep nnU-Net's normalisation" in out
    plans = nnunet_plans()
    resolved = finetune.resolve(plans, "3d_fullres")
    assert (
        architecture(plans, resolved, loaded.encoder_config, "light", loaded.hu)["arch_kwargs"][
            "intensity"
        ]
        is None
    )


def test_files_of_safetensors_and_half_precision(tmp_path):
    tensors = {
        name: tensor.half().contiguous()
        for name, tensor in foreign.timm_swin().state_dict().items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    convert(ConvertRequest(tmp_path / "model.safetensors", tmp_path / "ours.pth", hu=(-160, 240)))
    loaded = checkpoint.load(tmp_path / "ours.pth")
    assert loaded.spacing is None
    assert (loaded.hu.normalise(torch.tensor(240.0)) * 0.226 + 0.449).item() == pytest.approx(1)
    name = "layers1.0.blocks.0.attn.qkv.weight"
    assert torch.equal(
        loaded.weights[f"encoder.{name}"], tensors["layers.0.blocks.0.attn.qkv.weight"].float()
    )


def test_every_source_is_documented():
    page = (Path(__file__).resolve().parents[1] / "documentation" / "foreign_weights.md").read_text(
        encoding="utf-8"
    )
    assert [source.name for source in sources.SOURCES if f"`{source.name}`" not in page] == []


@pytest.mark.parametrize(
    ("saved", "use_v2", "resembled"),
    [
        (foreign.retrained, True, "voco"),  # as VoComni, and as any Swin UNETR with use_v2=True
        (foreign.wrapped, True, "voco"),
        (foreign.wrapped, False, "suprem"),
    ],
)
def test_weights_are_not_taken_for_those_of_others_by_names_that_many_have(
    call, saved, use_v2, resembled
):
    """Merging, HU, spacing, licence and citation would be those of another network."""
    content = saved(foreign.monai(**SMALL, use_v2=use_v2))
    code, _, err, path = call(content)
    assert (code, path.exists()) == (1, False)
    assert f"may be of {resembled} (" in err
    assert f"give --source {resembled}. " in err
    assert "--source monai with --merging legacy" in err
    code, _, err, path = call(content, "--source", "monai", "--merging", "all", "--hu", "0", "100")
    assert code == 0, err
    own = checkpoint.load(path)
    assert (own.method, own.spacing, own.encoder_config.merging) == ("monai", None, "all")
    path.unlink()
    assert call(content, "--source", resembled)[0] == 0
    assert checkpoint.load(path).method == resembled


def test_semantics_survive_in_the_header(call, swinvit):
    config = checkpoint.load(call(swinvit)[3]).encoder_config
    assert (config.windows, config.merging, config.axes, config.taps) == (
        "monai",
        "legacy",
        "xyz",
        "merge",
    )
    assert SwinConfig.from_dict(config.to_dict()) == config
    assert set(Swin(config).state_dict()) == set(Swin(replace(config, merging="all")).state_dict())


# --- what is refused
# -----------------------------------------------------------------------------------------------


def without(content: dict, part: str) -> dict:
    return {
        "state_dict": {name: t for name, t in content["state_dict"].items() if part not in name}
    }


def changed(content: dict, name: str, tensor: torch.Tensor) -> dict:
    return {"state_dict": content["state_dict"] | {name: tensor}}


def holding_itself() -> dict:
    content = {"epoch": 3}
    content["state_dict"] = content
    return content


def in_one_storage(content: dict) -> dict:
    tensors = {n: t for n, t in content["state_dict"].items() if t.is_floating_point()}
    storage = torch.zeros(max(t.numel() for t in tensors.values()), dtype=torch.half)
    views = {n: storage[: t.numel()].view(t.shape) for n, t in tensors.items()}
    return {"state_dict": content["state_dict"] | views}


def v2(network: torch.nn.Module) -> dict:
    """With the names of a Swin V2 in place of its bias tables."""
    table, scale = "relative_position_bias_table", "logit_scale"
    return {name.replace(table, scale): tensor for name, tensor in network.state_dict().items()}


REFUSED = {
    "a U-Net": (
        lambda c: {"net": {"encoder.stages.0.conv": torch.zeros(2)}},
        (),
        "looks like a convolutional encoder",
    ),
    "Swin V2": (
        lambda c: {"layers.0.blocks.0.attn.logit_scale": torch.zeros(3)},
        (),
        r"no Swin encoder of a known layout: it looks like a Swin V2",
    ),
    "a ViT": (
        lambda c: {"pos_embed": torch.zeros(3), "blocks.0.w": torch.zeros(3)},
        (),
        "a plain ViT",
    ),
    "no tensors": (lambda c: {"state_dict": {"epoch": 3}}, (), "holds no tensors by name"),
    "a list": (lambda c: [1, 2], (), "holds no tensors by name, but list"),
    "a missing tensor": (
        lambda c: without(c, "layers2.0.blocks.0.attn.proj.bias"),
        (),
        "missing in the file: layers2.0.blocks.0.attn.proj.bias",
    ),
    "a missing stage": (
        lambda c: without(c, "layers3"),
        (),
        r"must have blocks; found \[1, 1, 0, 1\]",
    ),
    "a tensor too many": (
        lambda c: changed(c, "module.layers1.0.blocks.0.attn.gate", torch.zeros(2)),
        (),
        "unexpected in the file: layers1.0.blocks.0.attn.gate",
    ),
    "another shape": (
        lambda c: changed(c, "module.layers4.0.blocks.0.norm1.weight", torch.zeros(5)),
        (),
        r"other shape: layers4.0.blocks.0.norm1.weight is \(5,\) in the file, "
        r"\(96,\) in the network",
    ),
    "another index": (
        lambda c: changed(
            c, "module.layers4.0.blocks.0.attn.relative_position_index", torch.zeros(8, 8)
        ),
        (),
        "its bias table cannot be used",
    ),
    "an index that the file does not hold": (
        lambda c: changed(
            c,
            "module.layers4.0.blocks.0.attn.relative_position_index",
            torch.zeros(1, dtype=torch.long).expand(8, 8),
        ),
        (),
        "its bias table cannot be used",
    ),
    "odd windows": (
        lambda c: changed(
            c, "module.layers1.0.blocks.0.attn.relative_position_bias_table", torch.zeros(30, 1)
        ),
        (),
        r"bias table of 30 rows|its bias table cannot be used",
    ),
    "patches of 4": (
        lambda c: changed(c, "module.patch_embed.proj.weight", torch.zeros(12, 1, 4, 4, 4)),
        (),
        r"patches are \(4, 4, 4\)",
    ),
    "NaN": (
        lambda c: changed(c, "module.patch_embed.proj.bias", torch.full((12,), torch.nan)),
        (),
        "module.patch_embed.proj.bias holds NaN or infinite values; nothing was written",
    ),
    "whole numbers": (
        lambda c: changed(c, "module.patch_embed.proj.bias", torch.zeros(12, dtype=torch.int8)),
        (),
        "module.patch_embed.proj.bias is a .*torch.int8",
    ),
    "itself": (lambda c: holding_itself(), (), "holds no tensors by name"),
    "names that a terminal obeys": (
        lambda c: changed(c, "\x1b[2Kmodule.patch_embed.proj.bias", torch.zeros(1)),
        (),
        r"tensors with invalid names: \['\\x1b\[2Kmodule",
    ),
    "two encoders": (
        lambda c: {
            "state_dict": foreign.prefixed("a.", c["state_dict"])
            | foreign.prefixed("b.", c["state_dict"])
        },
        (),
        r"holds 2 encoder\(s\), with names that begin with 'a.module.', 'b.module.': "
        r"choose one with --prefix",
    ),
    "another prefix": (lambda c: c, ("--prefix", "swin."), "names that begin with 'module.'"),
    "unknown merging": (
        lambda c: {name.replace("fc", "linear"): t for name, t in c["state_dict"].items()},
        (),
        "MONAI 1.5 changed which tokens a merge joins",
    ),
    "another source": (
        lambda c: c,
        ("--source", "imagenet"),
        "--source imagenet does not match .* layout monai",
    ),
    "3D to 2D": (lambda c: c, ("--dims", "2"), "3D weights cannot be converted to 2D"),
    "tensors in one storage": (
        lambda c: in_one_storage(c),
        (),
        "the encoder's tensors claim .* bytes together, of which the file holds",
    ),
    "Swin V2 of timm": (lambda c: v2(foreign.timm_swin()), (), "holds a Swin V2 .cosine attention"),
    "Swin V2 of torchvision": (
        lambda c: v2(foreign.torchvision_swin()),
        (),
        "holds a Swin V2 .cosine attention",
    ),
    "HU and none": (
        lambda c: c,
        ("--hu", "1", "2", "--no-hu"),
        "--hu and --no-hu contradict each other",
    ),
    "endless HU": (lambda c: c, ("--hu", "0", "inf"), "--hu takes finite numbers; got 0 x inf"),
    "endless spacing": (
        lambda c: c,
        ("--spacing", "1", "1", "nan"),
        "--spacing takes finite numbers",
    ),
    "three numbers": (lambda c: c, ("--hu", "1", "2", "3"), "--hu takes LOW HIGH"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(call, swinvit, case):
    spoil, arguments, message = REFUSED[case]
    code, out, err, path = call(spoil(swinvit), *arguments)
    assert code == 1
    assert out == ""
    assert not path.exists()
    assert re.search(message, err), err


@pytest.mark.parametrize(
    "prefix", ["", "module.", "swinViT.", "module.swinViT.", "_orig_mod.module.", "a._orig_mod.b."]
)
def test_the_same_weights_under_any_prefix(call, swinvit, prefix):
    """With what training scripts keep beside them: numbers of numpy above all."""
    plain = {name.removeprefix("module."): tensor for name, tensor in swinvit["state_dict"].items()}
    content = {
        "epoch": 3,
        "best_acc": np.float64(0.8),
        "state_dict": foreign.prefixed(prefix, plain),
    }
    code, out, err, path = call(content)
    assert code == 0, err
    weights = checkpoint.load(path).weights
    assert f"{len(weights)} of {len(weights)} tensors from the file" in out
    bias = weights["encoder.patch_embed.proj.bias"]
    assert torch.equal(bias, plain["patch_embed.proj.bias"].float())


@pytest.mark.parametrize("window", [7, 400])
def test_bias_tables_of_parts_that_are_left_out_are_not_checked(call, swinvit, window):
    """A head in 2D is no fault, and a table that takes next to nothing in the file no memory."""
    table = torch.zeros(1).expand((2 * window - 1) ** 2, 3)
    state = swinvit["state_dict"] | {
        "module.decoder.a.relative_position_bias_table": table,
        "module.decoder.a.relative_position_index": relative_index((7, 7), 7, "exact"),
    }
    code, _, err, _ = call(swinvit | {"state_dict": state})
    assert code == 0, err


def test_one_of_two_encoders_is_chosen_by_its_prefix(call, swinvit):
    weights = swinvit["state_dict"]
    both = {"state_dict": foreign.prefixed("a.", weights) | foreign.prefixed("b.", weights)}
    code, out, err, _ = call(both, "--prefix", "b.module.")
    assert code == 0, err
    assert f"{len(weights)} outside of the encoder" in out


@pytest.mark.parametrize(
    ("first", "second"),
    [("student", "teacher"), ("state_dict", "state_dict_ema"), ("model", "ema.shadow")],
)
def test_an_encoder_of_several_dictionaries_is_chosen_by_its_prefix(call, swinvit, first, second):
    """Which one is wanted, nobody knows but the user."""
    one = swinvit["state_dict"]
    other = {name: tensor + 1 if "proj" in name else tensor for name, tensor in one.items()}
    outer, _, inner = second.partition(".")
    content = {"epoch": 3, first: one, outer: {inner: other} if inner else other}
    code, _, err, path = call(content)
    assert (code, path.exists()) == (1, False)
    assert "holds 2 encoder(s), with names that begin with " in err
    assert f"'{first}.module.'" in err
    assert f"'{second}.module.'" in err
    code, out, err, path = call(content, "--prefix", f"{second}.module.")
    assert code == 0, err
    assert f"{len(one)} outside of the encoder" in out
    bias = checkpoint.load(path).weights["encoder.patch_embed.proj.bias"]
    assert torch.equal(bias, other["module.patch_embed.proj.bias"].float())


def test_tensors_elsewhere_in_a_file_are_counted_and_ask_no_question(call, swinvit):
    """An optimiser's state, and one encoder under two keys, which is stored once."""
    weights = swinvit["state_dict"]
    moments = {number: {"exp_avg": torch.zeros(2), "step": 3} for number in range(7)}
    content = {
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3}]},
        "state_dict": weights,
        "model": weights,
    }
    code, out, err, path = call(content)
    assert code == 0, err
    assert "7 in dictionaries without an encoder" in out
    assert checkpoint.load(path).header["foreign"]["prefix"] == "module."


def test_an_encoder_is_found_under_any_keys(call, swinvit):
    code, _, err, path = call({"checkpoint": {"networks": {"encoder": swinvit["state_dict"]}}})
    assert code == 0, err
    assert checkpoint.load(path).header["foreign"]["prefix"] == "module."


def test_hu_that_nobody_knows_has_to_be_said(call):
    content = foreign.smit(True, window=2).published()
    code, _, err, path = call(content)
    assert code == 1
    assert "unknown HU range: the weights of smit_10k" in err
    assert not path.exists()
    assert call(content, "--no-hu")[0] == 0


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_is_executed(call, swinvit, tmp_path):
    code, _, err, path = call({**swinvit, "args": Malicious(tmp_path / "executed")})
    assert code == 1
    assert "holds more than tensors and plain values" in err
    assert not (tmp_path / "executed").exists()
    assert not path.exists()


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_truncated_files_are_refused(call, swinvit, tmp_path, name):
    whole = tmp_path / "whole.pt"
    torch.save(swinvit, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:5000])
    code, _, err, path = call(tmp_path / name)
    assert code == 1
    assert "truncated" in err
    assert not path.exists()


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_an_index_that_was_rounded_with_the_weights_is_no_fault(call, dtype):
    """`{name: tensor.half() ...}` also halves the buffers: 13 ** 3 rows are too many for it."""
    content = foreign.retrained(foreign.monai(depths=(1, 1, 1, 1)))["state_dict"]
    halved = {name: tensor.to(dtype) for name, tensor in content.items()}
    code, _, err, path = call(halved, "--merging", "all", "--no-hu")
    assert code == 0, err
    assert checkpoint.load(path).encoder_config.window == 7


def test_printed_commands_take_paths_with_blanks(call, swinvit, tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    path = call(swinvit)[3].rename(folder / "ours.pth")
    assert f"nnssl_plan -d DATASET -c '{path}'," in call(path)[2]
    request = ConvertRequest(path, folder / "hub", hub=True)
    assert f"hf upload OWNER/REPO '{folder / 'hub'}'\n" in convert(request)
    assert f"-c '{folder / 'half.pth'}'" in convert(
        ConvertRequest(path, folder / "half.pth", half=True)
    )


def test_files_are_neither_overwritten_nor_converted_twice(call, swinvit, tmp_path):
    path = call(swinvit)[3]
    before = path.read_bytes()
    code, _, err, _ = call(swinvit)
    assert (code, path.read_bytes()) == (1, before)
    assert "exists; choose another -o" in err
    ours = path.rename(tmp_path / "ours.pth")
    assert "is a checkpoint of this package already" in call(ours)[2]
    code, _, err, half = call(ours, "--half")
    assert code == 0, err
    assert half.stat().st_size < 0.6 * ours.stat().st_size
    half.unlink()
    assert "no file at" in call(tmp_path / "none.pt")[2]


# --- a 2D checkpoint of ours in 3D
# -----------------------------------------------------------------------------------------------


def encoder_in(path: Path) -> Swin:
    loaded = checkpoint.load(path)
    encoder = Swin(loaded.encoder_config)
    checkpoint.transfer(loaded, encoder)
    return encoder.double().eval()


def test_a_2d_checkpoint_of_ours_sees_in_each_slice_in_3d_what_it_saw_in_2d(call, tmp_path):
    flat = pretrained(tmp_path, replace(ENCODER, spatial_dims=2))
    code, said, _, deep = call(flat, "--dims", "3")
    assert code == 0, said
    image = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    volume = image[:, :, None].expand(-1, -1, 32, -1, -1)
    with torch.no_grad():
        pairs = zip(encoder_in(flat)(image), encoder_in(deep)(volume), strict=True)
        for slices, maps in pairs:
            expected = slices[:, :, None].expand_as(maps)
            # the weights are stored in single precision
            torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)
    header = checkpoint.load(deep).header
    assert header["start"]["sha256"] == files.sha256(flat)
    assert header["start"]["supervised"] is False
    assert (header["crop"], header["plan"]["spacing"]) == ([32, 32, 32], [3.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": ((2, 2), (2, 1), (2, 2), (2, 2), (2, 2))}, "steps=((2, 2), (2, 1)"),
        ({"windows": "monai"}, "windows='monai'"),
        ({"convolutions": True}, "convolutions=True"),
    ],
)
def test_what_would_not_be_the_same_in_3d_is_not_inflated(call, tmp_path, changed, message):
    flat = pretrained(tmp_path, replace(ENCODER, spatial_dims=2, **changed))
    code, _, err, path = call(flat, "--dims", "3")
    assert (code, path.exists()) == (1, False)
    assert f"cannot be inflated exactly ({message}" in err
    assert "leave out --dims" in err


def test_what_is_3d_already_is_not_inflated(call, tmp_path):
    code, _, err, path = call(pretrained(tmp_path), "--dims", "3")
    assert (code, path.exists()) == (1, False)
    assert "already records this: leave out --dims" in err
