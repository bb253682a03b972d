"""Damaged, absurd and hostile checkpoints: each is refused by a CheckpointError, none is used in
part.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained

from nnssl import checkpoint, cli, files
from nnssl.checkpoint import CheckpointError
from nnssl.checkpoint.card import card
from nnssl.checkpoint.decoder_header import without_heads
from nnssl.checkpoint.header import problem
from nnssl.encoder.swin import Swin
from nnssl.network.decoders import make_decoder

NAME = "encoder.layers2.0.blocks.0.mlp.linear1.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Shared by all tests: read, never written."""
    return pretrained(tmp_path_factory.mktemp("whole"))


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


def content_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


# -- bits ----------------------------------------------------------------------------------------


def test_the_same_content_gives_the_same_bytes(tmp_path):
    first, second = pretrained(tmp_path / "a"), pretrained(tmp_path / "b")
    assert files.sha256(first) == files.sha256(second)


def test_files_that_were_saved_by_path_are_read(whole, tmp_path):
    """As all checkpoints were until now: their records carry another name."""
    path = saved(tmp_path, content_of(whole))
    assert torch.equal(checkpoint.load(path).weights[NAME], checkpoint.load(whole).weights[NAME])


def test_a_flipped_bit_in_any_record_is_noticed(whole, tmp_path):
    """PyTorch itself reads 29 of 30 such files."""
    bits, path = random.Random(0), tmp_path / "flipped.pth"
    original = whole.read_bytes()
    with zipfile.ZipFile(whole) as archive:
        records = [r for r in archive.infolist() if r.file_size > 64]
    for record in bits.sample(records, 12):
        data = bytearray(original)
        (names, extra) = struct.unpack_from("<HH", data, record.header_offset + 26)
        offset = record.header_offset + 30 + names + extra + bits.randrange(record.file_size)
        data[offset] ^= 1 << bits.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            checkpoint.load(path)


def test_a_flipped_bit_of_a_weight_is_noticed(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    offset = data.index(content_of(whole)["network_weights"][NAME].numpy().tobytes())
    data[offset + 5] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"it is damaged: the checksum of .* does not match"):
        checkpoint.load(tmp_path / "flipped.pth")


@pytest.mark.parametrize("seed", range(12))
def test_fuzzed_files_are_refused_or_harmless(whole, tmp_path, seed):
    """Bytes overwritten, cut out, repeated; the same in every run."""
    chance, path = random.Random(seed), tmp_path / "fuzzed.pth"
    data = bytearray(whole.read_bytes())
    for _ in range(chance.randint(1, 3)):
        offset, length = chance.randrange(len(data)), chance.choice([1, 4, 100])
        what = chance.choice(["noise", "cut", "repeat"])
        if what == "noise":
            data[offset : offset + length] = chance.randbytes(length)
        elif what == "cut":
            del data[offset : offset + length]
        else:
            data[offset:offset] = data[offset : offset + length]
    path.write_bytes(data)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError:
        return
    same = checkpoint.load(whole)
    assert all(torch.equal(loaded.weights[name], w) for name, w in same.weights.items())


def test_an_archive_that_pytorch_did_not_write_is_not_unpacked(whole, tmp_path):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/99999", bytes(10**7))
    with pytest.raises(CheckpointError, match="PyTorch did not write it"):
        checkpoint.load(bomb)


# -- tensors -------------------------------------------------------------------------------------


def nan(weight):
    return torch.where(torch.arange(weight.numel()).view_as(weight) == 3, torch.nan, weight)


TENSORS = {
    "NaN": (nan, "holds NaN or infinite values"),
    "infinite": (lambda weight: weight / 0, "holds NaN or infinite values"),
    "beyond single precision": (lambda weight: weight.double() * 1e300, "holds NaN or infinite"),
    "whole numbers": (lambda weight: weight.to(torch.int8), "torch.int8"),
    "bool": (lambda weight: weight > 0, "torch.bool"),
    "complex": (lambda weight: weight.to(torch.complex64), "torch.complex64"),
    "sparse": (lambda weight: weight.to_sparse(), "torch.sparse_coo"),
    "meta": (lambda weight: weight.to("meta"), "meta"),
    "one number repeated": (lambda weight: torch.zeros(()).expand(weight.shape), "claims"),
    "10^12 numbers": (
        lambda weight: torch.zeros(1).expand(10**6, 10**6),
        "the tensors must be those",
    ),
    "another shape": (
        lambda weight: weight.T.contiguous(),
        "the tensors must be those of the encoder",
    ),
    "no axes": (lambda weight: torch.zeros(()), "the tensors must be those of the encoder"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_what_must_not_become_weights_is_refused(whole, tmp_path, case):
    spoil, message = TENSORS[case]
    content = content_of(whole)
    content["network_weights"][NAME] = spoil(content["network_weights"][NAME])
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved(tmp_path, content))


def in_one_storage(content: dict, count: int) -> dict:
    """`count` of the tensors as views of one storage that is as large as the largest of them."""
    largest = sorted(content["network_weights"].items(), key=lambda item: -item[1].numel())[:count]
    storage = torch.zeros(largest[0][1].numel(), dtype=torch.half)
    views = {name: storage[: w.numel()].view(w.shape) for name, w in largest}
    return content | {"network_weights": content["network_weights"] | views}


def test_tensors_that_would_take_many_times_their_file_are_refused(whole, tmp_path):
    """In half precision each of them would become a copy of its own."""
    content = checkpoint.halved(content_of(whole))
    path = saved(tmp_path, in_one_storage(content, len(content["network_weights"])))
    with pytest.raises(CheckpointError, match=r"claim \d+ bytes together, of which the file holds"):
        checkpoint.load(path)


def test_a_tensor_under_two_names_is_no_fault(whole, tmp_path):
    content = in_one_storage(content_of(whole), 2)
    loaded = checkpoint.load(saved(tmp_path, content))
    assert set(loaded.weights) == set(content["network_weights"])
    tied = torch.ones(100)
    assert checkpoint.why_inflated([tied, tied]) is None
    assert checkpoint.why_inflated([tied] * 3) is not None
    assert checkpoint.why_inflated(tied.split(10)) is None


def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "scripted.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript archive \(torch\.jit\.save\)"):
        checkpoint.load(tmp_path / "scripted.pt")


def test_half_precision_is_no_fault_and_is_read_as_single(whole, tmp_path):
    content = content_of(whole)
    content["network_weights"] = {n: w.half() for n, w in content["network_weights"].items()}
    assert checkpoint.load(saved(tmp_path, content)).weights[NAME].dtype is torch.float32


# -- headers -------------------------------------------------------------------------------------

LOOP: list = []
LOOP.append(LOOP)
DOUBLING: list = []
for _ in range(60):
    DOUBLING = [DOUBLING, DOUBLING]  # as JSON it has 2^60 lists
HOSTILE = (
    None,
    3,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    10**18,
    True,
    "x",
    "",
    [],
    {},
    [1, 2],
    ["a", "b", "c"],
    torch.zeros(2),
    [[1]],
    {"a": 1},
    {1: 2},
    [10**9] * 4,
    "\x1b[2K",
    [float("nan")] * 3,
    [0, 0, 0],
    [-1, 1, 1],
    1e308,
    -1e308,
    10**400,
    -(10**400),
    48 * 10**400,
    [10**400] * 3,
    10**5000,
    {"loss": float("nan")},
    {"loss": torch.zeros(2)},
    {"loss": LOOP},
    {"loss": DOUBLING},
    {(1, 2): 3},
    b"x",
)
PLACES = (
    ("format_version",),
    ("header",),
    ("citations",),
    ("header", "method"),
    ("header", "crop"),
    ("header", "plan"),
    ("header", "plan", "hu"),
    ("header", "plan", "hu", "sd"),
    ("header", "plan", "hu", "high"),
    ("header", "plan", "spacing"),
    ("header", "encoder"),
    *(("header", "encoder", name) for name in ENCODER.to_dict()),
    *(("header", name) for name in ("preset", "versions", "created", "run", "step", "metrics")),
    *(("header", name) for name in ("method_config", "probe", "foreign", "start", "unknown")),
    ("nnssl_adaptation_plan",),
)


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_whatever_stands_in_a_header_it_is_shown_or_refused(whole, place):
    """No other exception, nothing allocated for it, nothing that a terminal obeys."""
    original = checkpoint.load(whole)
    content = content_of(whole)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    for value in HOSTILE:
        inner[place[-1]] = value
        if (why := problem(content)) is not None:
            assert why.isprintable()
            continue
        loaded = replace(original, header=content["header"], citations=content["citations"])
        assert "\x1b" not in checkpoint.describe(loaded)
        json.loads(checkpoint.to_json(loaded), parse_constant=pytest.fail)
        assert "\x1b" not in card(loaded)
        assert loaded.header.get("preset", "").isprintable()  # a run that starts from it prints it
        sizes = (
            loaded.encoder_config.embed_dim,
            loaded.encoder_config.depths,
            loaded.encoder_config.mlp_ratio,
        )
        assert sizes == (ENCODER.embed_dim, ENCODER.depths, ENCODER.mlp_ratio)
        assert len(loaded.crop) == 3


def test_what_json_cannot_hold_says_so(whole, tmp_path):
    content = content_of(whole)
    content["header"]["metrics"] = {"loss": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"header must hold text, finite.*got a Tensor"):
        checkpoint.load(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "light", "norm": "dataset"}, None),
        ({"name": "of a later version", "width": 5}, None),
        ({"name": "light"}, "tensors must be those of {'name': 'light'}; got"),
        ({"name": "light", "norm": "dataset", "widths": [2500, 16, 16, 16, 16]}, "got .'lifts.0"),
        ({"name": "light", "widths": [10**15] * 5}, "lists of widths up to 65536; got"),
        ({"name": "light", "width": "x"}, "does not take these options"),
        ({"norm": "dataset"}, "decoder must have a name"),
    ],
)
def test_a_decoder_is_the_one_that_the_header_names(whole, tmp_path, options, message):
    """No network is built by a header alone."""
    content = content_of(whole)
    encoder = Swin(checkpoint.load(whole).encoder_config)
    light = make_decoder({"name": "light", "norm": "dataset"}, encoder, 2, True).state_dict()
    content["network_weights"] |= {f"decoder.{name}": w for name, w in without_heads(light).items()}
    content["header"]["decoder"] = options
    if message is None:
        assert checkpoint.load(saved(tmp_path, content)).decoder == options
        return
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved(tmp_path, content))


def test_a_decoder_without_tensors_is_refused(whole, tmp_path):
    content = content_of(whole)
    content["header"]["decoder"] = {"name": "light", "norm": "dataset"}
    with pytest.raises(CheckpointError, match="the decoder's tensors must be those of"):
        checkpoint.load(saved(tmp_path, content))


@pytest.mark.parametrize(
    "lost", ["preset", "versions", "created", "run", "step", "metrics", "method_config"]
)
def test_what_only_informs_may_be_missing(whole, lost, tmp_path):
    content = content_of(whole)
    content["header"].pop(lost, None)
    assert "unknown" in checkpoint.describe(checkpoint.load(saved(tmp_path, content)))


@pytest.mark.parametrize("lost", ENCODER.to_dict())
def test_what_the_encoder_does_not_say_is_the_default_or_refused(whole, lost, tmp_path):
    content = content_of(whole)
    del content["header"]["encoder"][lost]
    try:
        loaded = checkpoint.load(saved(tmp_path, content))
    except CheckpointError:
        return
    assert loaded.encoder_config == ENCODER


def test_a_terminal_shows_what_it_would_obey(whole, tmp_path, capsys, monkeypatch):
    content = content_of(whole)
    content["header"]["plan"]["name"] = "ct\x1b[2K\x1b[1A\nsha256     0000\x1b]0;title\x07"
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect", str(saved(tmp_path, content))])
    assert cli.inspect() == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert [line[:6] for line in shown.splitlines()].count("sha256") == 1
    assert r"ct\x1b[2K\x1b[1A\nsha256" in shown


# -- what others have saved ----------------------------------------------------------------------


def test_numbers_of_numpy_are_read_as_pythons(tmp_path):
    """U3: other people's scripts keep numpy's scalars beside their weights."""
    numbers = {
        "f8": np.float64(0.8),
        "f4": np.float32(0.5),
        "i8": np.int64(-3),
        "b": np.bool_(True),
    }
    path = tmp_path / "monai.pt"
    torch.save({"best_acc": numbers, "epoch": 3}, path)
    read = checkpoint.read_plain(path)["best_acc"]
    assert read == {"f8": 0.8, "f4": 0.5, "i8": -3, "b": True}
    assert {type(value) for value in read.values()} == {float, int, bool}


@pytest.mark.parametrize("value", [np.zeros(3), np.array("text")[()], io.BytesIO, np.dtype("O")])
def test_what_would_be_executed_is_named_without_advice_to_execute_it(tmp_path, value):
    path = saved(tmp_path, {"state_dict": {}, "other": value})
    with pytest.raises(CheckpointError) as error:
        checkpoint.read_plain(path)
    assert "more than tensors and plain values" in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)
