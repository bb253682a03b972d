"""Masked methods that compute visible blocks alone: training, export, pictures, refusals."""

from __future__ import annotations

import micro
import pytest
import torch

from nnssl import checkpoint
from nnssl.encoder.swin import Swin
from nnssl.encoder.visible import Visible
from nnssl.views.masking import all_but

pytestmark = pytest.mark.usefixtures("one_thread")

CROP = (32, 32, 32)


@pytest.mark.parametrize("decode_from", [8, 16, 32])
@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_methods_train_and_export_the_encoder_as_ever(tmp_path, name, decode_from) -> None:
    """Mask tokens enter where the finest map is decoded, at stride 16 at the latest."""
    method = micro.method(name, visible_only=True, decode_from=decode_from)
    assert len(method.encoder.mask_token) == method.encoder.channels[2 if decode_from == 8 else 3]
    rows = micro.steps(method, 2, crop=CROP)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    waiting = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert waiting == set()
    path = tmp_path / "checkpoint.pth"
    checkpoint.write(path, checkpoint.pack(method.encoder, micro.header(name), ["Author 2022"]))
    plain = Swin(method.encoder.config)
    done = checkpoint.transfer(checkpoint.load(path), plain)
    assert set(done.explained) <= {"mask_token"}
    own = method.encoder.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in plain.state_dict().items())


@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_pictures_show_what_is_computed(name: str) -> None:
    method = micro.method(name, visible_only=True, mask_block=8).eval()
    views = micro.views(method, crop=CROP)
    with torch.no_grad():
        shown = method.show(views)
    seen = shown["seen" if name == "simmim" else "student sees"]
    visible = views["visible"].flatten(0, -2)
    hidden = all_but(visible, (4, 4, 4))
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(8, axis)
    assert torch.equal(seen.isnan()[:, 0], hidden)


@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_what_is_not_visible_reaches_no_student(name: str) -> None:
    method = micro.method(name, visible_only=True, mask_block=8).eval()
    views = micro.views(method, crop=CROP)
    shown = []
    for value in (0.0, 100.0):
        visible = method.show(views)["seen" if name == "simmim" else "student sees"]
        other = visible.nan_to_num(nan=value).view(views["image"].shape)
        maps = (
            method._predict({**views, "image": other})[0]
            if name == "simmim"
            else method.student(
                other.flatten(0, 1),
                Visible(views["visible"].flatten(0, 1), (8, 8, 8)),
                wanted=range(5),
            ).maps
        )
        shown.append([each for each in maps[2:] if each is not None])  # those that are read
    assert shown[0]
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_from": 4}, "needs a decode_from of at least 8, and decoder=linear"),
        ({"decoder": "light"}, "needs a decode_from of at least 8, and decoder=linear"),
        ({"mask_block": "16x8x4"}, "with decode_from=8 needs a mask_block of at least 8"),
        (
            {"mask_block": 8, "decode_from": 16},
            "with decode_from=16 needs a mask_block of at least 16",
        ),
    ],
    ids=str,
)
def test_what_reads_the_finest_maps_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=f"visible_only=true {message}"):
        micro.config("simmim", visible_only=True, **settings)


def test_a_crop_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a ratio of 0.6 hides all of 1 block\(s\)"):
        micro.views(micro.method("simmim", visible_only=True), crop=(16, 16, 16))
