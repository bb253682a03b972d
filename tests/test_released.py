"""The weights that come with the package: what they are, and that they are found by default."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic_checkpoints import pretrained
from synthetic_plans import DATASET, nnunet_plans

import nnssl
from nnssl import address, checkpoint, cli, files, finetune, weights
from nnssl.checkpoint.card import CONFIG, card
from nnssl.convert.conversion import ConvertRequest, convert
from nnssl.embed import work
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.plans import derive
from nnssl.plans.plans_description import describe_plans
from nnssl.study.design import values
from nnssl.types import BASE

MIB = 2**20
NAMES = list(weights.RELEASED)
GIVEN = weights.RELEASED[weights.DEFAULT]


@pytest.fixture
def copied(tmp_path, monkeypatch) -> weights.Released:
    """Released weights that a test may damage."""
    folder = tmp_path / "weights"
    shutil.copytree(GIVEN.file.parent, folder / GIVEN.name)
    monkeypatch.setattr(weights, "FOLDER", folder)
    return GIVEN


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_one_that_is_pinned_and_loads_as_float32(name):
    loaded = checkpoint.load(name)
    assert loaded.sha256 == weights.RELEASED[name].sha256, (
        f"pin this file: sha256 {loaded.sha256} in nnssl/weights/__init__.py"
    )
    assert {tensor.dtype for tensor in loaded.weights.values()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(loaded.path).values()} == {torch.float16}


def test_they_are_small():
    sizes = {path: path.stat().st_size for path in weights.FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 16 * MIB
    assert sum(sizes.values()) < 60 * MIB


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_them_names_a_machine_or_a_scan(name):
    """No path, no user, no training state: all strings of the file are those of the header."""
    one = weights.RELEASED[name]
    content = checkpoint.read(one.file)
    assert content.keys() == checkpoint.KEYS
    texts = [*_texts([content["header"], content["citations"]]), *content["network_weights"]]
    assert not [text for text in texts if re.search(r"[/\\~]|\.nii|@", text)], texts
    if start := content["header"].get("start"):
        about = (weights.FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert f"`{start['checkpoint']}`" in about
    with one.file.open("rb") as file:
        said = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert said.keys() - content["network_weights"].keys() == {"__metadata__"}
    assert said["__metadata__"].keys() == {"nnssl"}


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", NAMES)
def test_card_and_configuration_are_those_of_the_file(name):
    one = weights.RELEASED[name]
    loaded = checkpoint.load(one.file)
    about = (weights.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    text = one.card.read_text(encoding="utf-8")
    (licence,) = re.findall(r"^license: (\S+)$", text, flags=re.MULTILINE)
    assert text == card(loaded, licence, about, name), "type the lines of the card again"
    config = files.read_json(one.file.parent / CONFIG)
    assert (config["sha256"], config["header"]) == (loaded.sha256, loaded.header)
    for needed in ("Licence of the ", "**Commands**", "mean Dice", "## Limits"):
        assert needed in text
    assert ("pretrained without labels" in text) == (not name.startswith("natural_tiny"))


def test_the_documented_line_makes_the_same_file(tmp_path, monkeypatch):
    """From the checkpoint in single precision; here from one that was made of the file."""
    content = checkpoint.read(GIVEN.file)
    checkpoint.write(tmp_path / "checkpoint_final.pth", content)
    words = f"nnssl_convert {tmp_path / 'checkpoint_final.pth'} -o {tmp_path / GIVEN.name} --hub"
    about = f"--half --licence apache-2.0 --about {weights.FOLDER / GIVEN.name}.md"
    monkeypatch.setattr(sys, "argv", f"{words} {about}".split())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)  # where the folder is named as in the package
    assert cli.convert() == 0
    for path in GIVEN.file.parent.iterdir():
        theirs = Path(nnssl.__file__).parent / "weights" / GIVEN.name / path.name
        assert files.sha256(path) == files.sha256(theirs), path.name


def test_the_3d_encoder_of_natural_images_is_the_2d_one_inflated(tmp_path):
    one = weights.RELEASED[weights.DEFAULT_NOT_CT]
    about = weights.FOLDER / f"{one.name}.md"
    request = ConvertRequest(
        weights.DEFAULT_2D,
        tmp_path / one.name,
        dims=3,
        hub=True,
        half=True,
        licence="apache-2.0",
        about=about,
    )
    convert(request)
    assert files.sha256(tmp_path / one.name / weights.MODEL) == one.sha256


def test_half_precision_is_half_the_size_and_within_a_thousandth(tmp_path):
    path = pretrained(tmp_path)
    for half in (False, True):
        convert(ConvertRequest(path, tmp_path / f"{half}.safetensors", half=half))
    whole, half = (tmp_path / f"{half}.safetensors" for half in (False, True))
    assert half.stat().st_size < 0.65 * whole.stat().st_size  # headers included
    one, other = checkpoint.load(whole).weights, checkpoint.load(half).weights
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    content = checkpoint.read(pretrained(tmp_path))
    name = next(iter(content["network_weights"]))
    content["network_weights"][name].fill_(1e6)
    with pytest.raises(checkpoint.CheckpointError, match=rf"{name} holds a value outside half"):
        checkpoint.halved(content)


def test_a_training_starts_from_them_where_nothing_else_is_named(nnunet_env):
    plans = nnunet_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [2.5, 3.0, 3.0]
    finetune.resolve_architecture(plans, "3d_fullres")
    info = plans[INFO]
    assert (info["checkpoint_path"], info["sha256"]) == (GIVEN.name, GIVEN.sha256)
    network = finetune.build_network(
        finetune.resolve(plans, "3d_fullres"), 1, 3, deep_supervision=False
    )
    lines = "\n".join(finetune.load_named_checkpoint(network, plans))
    assert info["matched"] == info["total"]
    assert "named by default: the plans and nnssl_checkpoint name none" in lines
    for said in (GIVEN.sha256, str(GIVEN.card), GIVEN.good_for, GIVEN.unknown):
        assert said in lines
    assert "tensors of the decoder light matched" in lines
    assert "WARNING" not in lines
    given = checkpoint.load(GIVEN.name).weights
    name = "encoder.layers3.0.blocks.1.attn.qkv.weight"
    torch.testing.assert_close(network.state_dict()[name], given[name])


def test_images_that_are_not_ct_are_warned_of_weights_of_ct(nnunet_env, monkeypatch):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, GIVEN.name)
    plans = nnunet_plans(("ZScoreNormalization",))
    finetune.resolve_architecture(plans, "3d_fullres")
    network = finetune.build_network(
        finetune.resolve(plans, "3d_fullres"), 1, 3, deep_supervision=False
    )
    lines = "\n".join(finetune.load_named_checkpoint(network, plans))
    assert "WARNING: no channel of this dataset is CT" in lines
    assert f"export nnssl_checkpoint={weights.DEFAULT_NOT_CT}" in lines


@pytest.mark.parametrize(
    ("configuration", "scheme", "name"),
    [
        ("2d", "CTNormalization", "natural_tiny"),
        ("2d", "ZScoreNormalization", "natural_tiny"),
        ("3d_fullres", "ZScoreNormalization", "natural_tiny_3d"),
    ],
)
def test_slices_and_other_modalities_start_from_natural_images(
    nnunet_env, configuration, scheme, name
):
    """Photographs are of no modality."""
    plans, one = nnunet_plans((scheme,)), weights.RELEASED[name]
    finetune.resolve_architecture(plans, configuration)
    info = plans[INFO]
    assert (info["checkpoint_path"], info["sha256"]) == (one.name, one.sha256)
    resolved = finetune.resolve(plans, configuration)
    network = finetune.build_network(resolved, 1, 3, deep_supervision=False)
    lines = "\n".join(finetune.load_named_checkpoint(network, plans))
    assert info["matched"] == info["total"]
    assert one.good_for in lines
    assert "WARNING" not in lines
    assert finetune.intensities(resolved, info) == ["Intensities: as normalised by nnU-Net"]
    tensor = "encoder.layers3.0.blocks.1.attn.qkv.weight"
    given = checkpoint.load(one.name).weights[tensor]
    torch.testing.assert_close(network.state_dict()[tensor], given)


def test_one_channel_of_ct_is_enough_for_the_weights_of_ct(nnunet_env):
    plans = nnunet_plans(("ZScoreNormalization", "CTNormalization"))
    finetune.resolve_architecture(plans, "3d_fullres")
    assert plans[INFO]["checkpoint_path"] == GIVEN.name


@pytest.mark.parametrize(("configuration", "dims"), [("2d", 2), ("3d_fullres", 3)])
def test_a_random_start_has_the_network_of_the_released_weights(nnunet_env, configuration, dims):
    plans = nnunet_plans()
    finetune.resolve_architecture(plans, configuration)
    given = checkpoint.load(weights.default(dims).name)
    arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    assert arguments["encoder"]["embed_dim"] == given.encoder_config.embed_dim
    assert arguments["encoder"]["spatial_dims"] == dims
    (line,) = finetune.random_start(plans)
    assert f"as in {weights.default(dims).name}, without its weights" in line


def test_a_checkpoint_of_ones_own_comes_first(nnunet_env, monkeypatch, tmp_path):
    assert checkpoint_choice.choose({}).default
    own = pretrained(nnunet_env["nnUNet_results"] / "nnssl" / "ct" / "smit__micro")
    assert checkpoint_choice.choose({}).path == own
    monkeypatch.setenv(checkpoint_choice.VARIABLE, GIVEN.name)
    named = checkpoint_choice.choose({})
    assert (named.path, named.default) == (GIVEN.file, False)


def test_plans_name_them_however_they_were_named(nnunet_env):
    loaded = checkpoint.load(GIVEN.name)
    for path in (GIVEN.name, str(GIVEN.file), str(GIVEN.file.parent)):
        choice = checkpoint_choice.choose({"checkpoint_path": path})
        info = checkpoint_choice.pretrain_info(choice, loaded)
        assert (info["checkpoint_path"], info["checkpoint_name"]) == (GIVEN.name, GIVEN.name)


def test_plans_of_another_machine_find_them_by_hash(nnunet_env):
    info = {"checkpoint_path": "/site-packages/nnssl/x.safetensors", "sha256": GIVEN.sha256}
    assert checkpoint_choice.choose(info).path == GIVEN.file


def test_a_path_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / GIVEN.name).mkdir()  # holds no weights
    assert address.local(GIVEN.name) == GIVEN.file
    (tmp_path / GIVEN.name).rmdir()
    convert(ConvertRequest(pretrained(tmp_path / "own"), tmp_path / GIVEN.name, hub=True))
    assert address.local(GIVEN.name) == Path(GIVEN.name, address.MODEL)
    planned = {"checkpoint_path": GIVEN.name, "sha256": GIVEN.sha256}
    assert checkpoint_choice.choose(planned).path == GIVEN.file
    assert checkpoint.load(GIVEN.name).method == "smit"


def test_a_study_names_them(tmp_path):
    assert values.weights(GIVEN.name, values.Place("arm a: checkpoint", tmp_path)) == GIVEN.file
    own = tmp_path / GIVEN.name
    own.touch()
    assert values.weights(GIVEN.name, values.Place("arm a: checkpoint", tmp_path)) == own


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_what_is_not_as_released_is_refused(copied, nnunet_env, damage):
    whole = copied.file.read_bytes()
    copied.file.unlink()
    if damage != "missing":
        other = bytearray(whole)
        other[-1] ^= 1
        copied.file.write_bytes(other if damage == "changed" else whole[:-100])
    says = "missing" if damage == "missing" else "damaged or changed"
    for use in (
        lambda: checkpoint_choice.choose({}),
        lambda: checkpoint.load(copied.name),
        lambda: nnssl.load_encoder(),
        lambda: values.weights(copied.name, values.Place("arm a")),
    ):
        with pytest.raises(
            ValueError, match=rf"released weights {GIVEN.name} are {says}(.|\n)*Reinstall"
        ):
            use()


def test_an_unknown_name_lists_the_names(nnunet_env):
    with pytest.raises(
        checkpoint_choice.NoCheckpointError, match=f"instead of a path: {GIVEN.name}"
    ):
        checkpoint_choice.choose({"checkpoint_path": "smit_huge"})
    with pytest.raises(FileNotFoundError, match=GIVEN.name):
        checkpoint.load("smit_huge")


def test_the_encoder_is_loaded_without_a_name(nnunet_env):
    encoder = nnssl.load_encoder()
    assert encoder.about["sha256"] == GIVEN.sha256
    assert encoder.spacing == (2.5, 3.906, 3.906)


def test_inspect_shows_what_a_training_would_start_from(nnunet_env, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect"])
    assert cli.inspect() == 0
    assert GIVEN.sha256 in capsys.readouterr().out


def test_the_names_of_the_networks_parts_fit(nnunet_env):
    """Heads alone start at random: all other tensors of the network are in the file."""
    plans = nnunet_plans()
    finetune.resolve_architecture(plans, "3d_fullres")
    network: SwinUNETR = finetune.build_network(
        finetune.resolve(plans, "3d_fullres"), 1, 3, deep_supervision=False
    )
    given = checkpoint.load(GIVEN.name).weights
    new = [name for name, _ in network.named_parameters() if name not in given]
    assert new
    assert all("seg_layers" in name for name in new)


def test_plans_without_a_name_carry_and_describe_them(nnunet_env):
    folder = nnunet_env["nnUNet_preprocessed"] / DATASET
    plans = nnunet_plans()
    files.write_json(folder / f"{BASE}.json", plans)
    request = derive.PlansRequest(DATASET, base=BASE)
    path = derive.derive(request).path
    assert files.read_json(path)[INFO]["checkpoint_path"] == GIVEN.name
    said = describe_plans(path, request)
    assert f"shipped with nnssl-swin as {GIVEN.name}" in said
    assert "decoder light (random start: its strides are not those of the pretraining)" in said
    plans["configurations"]["3d_fullres"]["spacing"] = [2.5, 3.9, 3.9]  # its own
    files.write_json(folder / f"{BASE}.json", plans)
    path = derive.derive(request).path
    assert "decoder light (pretrained in 3d_fullres)" in describe_plans(path, request)
    skips = {name: of_plans(path, name)["image_skip"] for name in ("3d_lowres", "3d_fullres")}
    assert skips == {"3d_lowres": "raw", "3d_fullres": "mapped"}


def of_plans(path: Path, name: str) -> dict:
    """The network of a configuration."""
    return finetune.resolve(files.read_json(path), name)["architecture"]["arch_kwargs"]


def test_features_without_a_name_say_whose_they_are(nnunet_env, tmp_path):
    said = []
    encoder = work.encoder_of(work.EmbedOptions([tmp_path], tmp_path), said.append)
    assert encoder.about["sha256"] == GIVEN.sha256
    assert "by default: nnssl_embed -c and nnssl_checkpoint name none" in said[0]
    assert GIVEN.good_for in said[0]
