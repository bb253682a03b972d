"""A folder for Hugging Face: the same checkpoint, bit for bit, and a card that claims nothing."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from micro import ENCODER, header
from safetensors.torch import load_file, save_file
from synthetic_checkpoints import pretrained

from nnssl import checkpoint, cli, files
from nnssl.checkpoint.card import CARD, CONFIG, card
from nnssl.convert.conversion import ConvertRequest, convert
from nnssl.encoder.swin import Swin


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnssl_convert", *map(str, arguments)])
        code = cli.convert()
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def trained(path):
    """With all that a pretraining writes, a decoder's tensors and a training state among them."""
    torch.manual_seed(0)
    about = {
        **header("smit"),
        "step": 6,
        "run": {"steps": 6, "batch_size": 4, "seed": 0},
        "metrics": {"total": 0.25, "lr": 1e-6, "rankme": 3.5},
        "probe": {"probe_liver": 0.5, "dataset": "made", "cases": ["a"]},
    }
    content = checkpoint.pack(Swin(ENCODER, maskable=True), about, ["Jiang 2022", "Others 2023"])
    checkpoint.write(path, content)
    return path


def test_the_way_there_and_back_is_the_same_file(call, tmp_path):
    path = trained(tmp_path / "checkpoint_final.pth")
    code, out, err = call(path, "-o", tmp_path / "hub", "--hub", "--licence", "apache-2.0")
    assert code == 0, err
    assert "hf upload OWNER/REPO" in out
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == [
        CARD,
        CONFIG,
        "model.safetensors",
    ]
    assert call(tmp_path / "hub", "-o", tmp_path / "back.pth")[0] == 0
    assert files.sha256(path) == files.sha256(tmp_path / "back.pth")


def test_the_folder_is_a_checkpoint_by_itself(tmp_path):
    path = trained(tmp_path / "checkpoint_final.pth")
    convert(ConvertRequest(path, tmp_path / "hub", hub=True))
    ours, theirs = checkpoint.load(path), checkpoint.load(tmp_path / "hub")
    assert (theirs.header, theirs.citations) == (ours.header, ours.citations)
    assert theirs.adaptation_plan == ours.adaptation_plan
    assert list(theirs.weights) == list(ours.weights)
    assert all(torch.equal(theirs.weights[name], ours.weights[name]) for name in ours.weights)
    assert theirs.sha256 == json.loads((tmp_path / "hub" / CONFIG).read_text())["sha256"]
    again = tmp_path / "again"
    convert(ConvertRequest(path, again, hub=True))
    for name in (CARD, CONFIG, "model.safetensors"):
        assert files.sha256(again / name) == files.sha256(tmp_path / "hub" / name)


def test_training_state_is_not_published(tmp_path):
    content = torch.load(trained(tmp_path / "a.pth"), weights_only=True)
    content["training_state"] = {"cases": ["a patient's name"]}
    checkpoint.write(tmp_path / "checkpoint_latest.pth", content)
    convert(ConvertRequest(tmp_path / "checkpoint_latest.pth", tmp_path / "hub", hub=True))
    for path in (tmp_path / "hub").iterdir():
        assert b"a patient's name" not in path.read_bytes()


def test_the_card_says_what_is_known(tmp_path):
    convert(
        ConvertRequest(trained(tmp_path / "a.pth"), tmp_path / "hub", hub=True, licence="cc-by-4.0")
    )
    text = (tmp_path / "hub" / CARD).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "nnssl-swin")
    for said in (
        "| method | smit |",
        "made: 6 scans; their licence: unknown",
        "3 x 2 x 2 mm (z y x)",
        "| -1000 | -4.1600 |",
        "| probe_liver | 0.5 |",
        "| rankme | 3.5 |",
        "step 6 of 6, 4 scans per step",
        "- Jiang 2022\n- Others 2023",
        "not a medical device",
    ):
        assert said in text
    assert "| lr |" not in text


@pytest.mark.parametrize(
    ("more", "said", "is_tagged"),
    [
        ({}, "pretrained without labels, for", True),
        ({"supervised": True}, "pretrained with labels, for", False),
        (
            {"start": {"checkpoint": "/home/a/photos.pth", "method": "x", "supervised": True}},
            "pretrained without labels from an encoder that had been trained with labels, for",
            False,
        ),
        ({"start": {"checkpoint": "/home/a/b.pth", "method": "x"}}, "pretrained without lab", True),
        ({"foreign": {"title": "SuPreM"}}, "from third-party weights", False),
    ],
)
def test_the_card_says_whether_labels_were_seen(tmp_path, more, said, is_tagged):
    loaded = checkpoint.load(trained(tmp_path / "a.pth"))
    loaded.header.update(more)
    text = card(loaded)
    assert said in text
    assert ("self-supervised-learning" in text) == is_tagged
    assert "/home" not in text
    assert ("| started from | " in text) == ("start" in more)


def test_a_card_without_a_spacing_has_commands_that_give_one(tmp_path):
    loaded = checkpoint.load(trained(tmp_path / "a.pth"))
    assert "--spacing" not in card(loaded)
    loaded.header["plan"]["spacing"] = None
    text = card(loaded, named="flat")
    assert "nnssl_embed -c flat -i SCANS -o OUT --spacing Z Y X " in text
    assert 'load_encoder("flat", spacing=(z, y, x))' in text
    assert "4 scans per step" in text


def test_the_card_says_what_is_unknown(tmp_path):
    path = pretrained(tmp_path, hu=None)
    convert(ConvertRequest(path, tmp_path / "hub", hub=True))
    text = (tmp_path / "hub" / CARD).read_text()
    assert "license: unknown" in text
    for said in (
        "| licence of the weights | unknown |",
        "unknown: unknown; their licence: unknown",
        "Unknown: the file holds none.",
        "- the licence of the weights\n- the licence of the scans",
        "Not in HU",
    ):
        assert said in text


def test_the_card_of_weights_of_others_tells_their_source(tmp_path):
    about = {
        **header("monai_swinvit"),
        "encoder": ENCODER.to_dict(),
        "foreign": {
            "file": "a|b.pt",
            "sha256": "12",
            "title": "MONAI model",
            "licence": "licence of the weights: unstated",
            "loaded": 5,
            "total": 6,
            "adapted": ["axes turned"],
        },
    }
    text = card(checkpoint.Checkpoint(tmp_path, "34", about, {}, {}, ["Tang"]))
    assert "license: unknown" in text
    assert "| licence of the weights | unknown |" in text
    assert "MONAI model (third-party weights, converted); licence of the scans: unknown" in text
    assert "- the licence of the weights\n- the licence of the scans, and whose they are" in text
    assert "From `a\\|b.pt`, sha256 `12`: 5 of 6 tensors.\n- axes turned" in text
    about["foreign"]["licence"] = "licence: Apache-2.0"
    text = card(checkpoint.Checkpoint(tmp_path, "34", about, {}, {}, ["Tang"]), about="5050 CT.")
    assert "license: apache-2.0\n" in text
    assert "| licence of the weights | Apache-2.0 |" in text
    assert "the licence of" not in text.split("## Not known")[1]


def test_the_card_of_several_channels_names_only_what_takes_them(tmp_path):
    path = pretrained(tmp_path, replace(ENCODER, in_channels=3))
    convert(ConvertRequest(path, tmp_path / "hub", hub=True))
    text = (tmp_path / "hub" / CARD).read_text()
    assert "3 channels, [B 3 Z Y X], axes" in text
    assert "nnssl_plan -d DATASET" in text
    assert not re.search("nnssl_embed|load_encoder|features of scans", text)


def test_the_card_of_a_2d_encoder_shows_maps_of_slices(tmp_path):
    path = pretrained(tmp_path, replace(ENCODER, spatial_dims=2))
    text = card(checkpoint.load(path))
    assert "five maps [Z C Y X], of" in text
    assert "One channel, [B 1 Y X], axial slices" in text


def test_what_a_header_leaves_out_of_its_encoder_is_the_default(tmp_path):
    content = checkpoint.read(pretrained(tmp_path))
    del content["header"]["encoder"]["spatial_dims"]
    checkpoint.write(tmp_path / "short.pth", content)
    convert(ConvertRequest(tmp_path / "short.pth", tmp_path / "hub", hub=True))
    assert "| encoder | Swin, 3D, " in (tmp_path / "hub" / CARD).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hub", "--hu", "0", "1"], "already records this: leave out --hu"),
        (["--licence", "mit"], "--licence and --about are for the card of a folder: add --hub"),
        ([], "is a checkpoint of this package already"),
    ],
)
def test_what_makes_no_sense_is_refused(call, tmp_path, arguments, message):
    code, _, err = call(pretrained(tmp_path), "-o", tmp_path / "new.pth", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "new.pth").exists()


def test_a_folder_that_exists_stays(call, tmp_path):
    (tmp_path / "hub").mkdir()
    code, _, err = call(pretrained(tmp_path), "-o", tmp_path / "hub", "--hub")
    assert code == 1
    assert "exists; choose another -o" in err
    assert list((tmp_path / "hub").iterdir()) == []


def test_damage_is_noticed(tmp_path):
    convert(ConvertRequest(pretrained(tmp_path), tmp_path / "hub", hub=True))
    path = tmp_path / "hub" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(checkpoint.CheckpointError, match="truncated or damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_of_a_weight_is_noticed_by_the_configuration(tmp_path):
    convert(ConvertRequest(pretrained(tmp_path), tmp_path / "hub", hub=True))
    path = tmp_path / "hub" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of the last weight's fraction
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"damaged or changed: its sha256 is not"):
        checkpoint.load(tmp_path / "hub")
    for said in ("{}", "[]", "{"):  # of another program
        (tmp_path / "hub" / CONFIG).write_text(said)
        assert checkpoint.load(tmp_path / "hub").method == "smit"
    (tmp_path / "hub" / CONFIG).unlink()
    assert checkpoint.load(tmp_path / "hub").method == "smit"


def with_header_of(path, length, padded):
    """Write a file of safetensors to `padded`, its header filled with spaces to `length` bytes."""
    whole = path.read_bytes()
    own = int.from_bytes(whole[:8], "little")
    header_bytes = whole[8 : 8 + own].ljust(length)
    padded.write_bytes(length.to_bytes(8, "little") + header_bytes + whole[8 + own :])


@pytest.mark.parametrize("low", [0x80, 0x50])
def test_any_length_of_the_header_is_read(call, tmp_path, low):
    """Its low byte may be the one that a pickle or an archive begins with."""
    convert(ConvertRequest(pretrained(tmp_path), tmp_path / "hub", hub=True))
    path, padded = tmp_path / "hub" / "model.safetensors", tmp_path / "padded.safetensors"
    with_header_of(path, (1 << 16) + low, padded)
    assert padded.read_bytes()[0] == low
    before, after = checkpoint.load(path).weights, checkpoint.load(padded).weights
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert call(padded, "-o", tmp_path / "back.pth")[0] == 0


def test_safetensors_of_others_are_no_checkpoint_until_converted(tmp_path):
    path = tmp_path / "of others.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(
        checkpoint.CheckpointError, match=f"third-party weights, type: nnssl_convert '{path}' -o"
    ):
        checkpoint.load(path)


def test_a_header_of_another_encoder_is_refused(tmp_path):
    """As in a file of PyTorch: what the metadata says is checked before it is used."""
    from safetensors import safe_open

    convert(ConvertRequest(pretrained(tmp_path), tmp_path / "hub", hub=True))
    path = tmp_path / "hub" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["nnssl"])
    said["header"]["encoder"]["depths"] = [1, 1, 1, 2]
    save_file(load_file(path), path, {"nnssl": json.dumps(said)})
    with pytest.raises(checkpoint.CheckpointError, match="has an invalid header"):
        checkpoint.load(path)
