"""SimMIM: what counts in its loss, what its encoder may not see, and what it refuses."""

from __future__ import annotations

import itertools

import micro
import pytest
import torch

from nnssl.modules.losses import masked_l1

CROP = (32, 32, 32)

pytestmark = pytest.mark.usefixtures("one_thread")


def covered(masked: torch.Tensor, block: int) -> torch.Tensor:
    for axis in range(1, masked.ndim):
        masked = masked.repeat_interleave(block, axis)
    return masked.unsqueeze(1)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_the_mean_error_over_hidden_voxels(dims):
    """Xie 2022, eq. 2, as a loop over blocks."""
    method = micro.method("simmim", spatial_dims=dims).eval()
    views = micro.views(method, crop=CROP[:dims])
    with torch.no_grad():
        predicted = method.show(views)["predicted"]
        loss = float(method.loss(views).losses["total"])
    error, count = 0.0, 0
    for scan, *block in itertools.product(range(2), *(range(2),) * dims):
        if views["masked"][(scan, *block)]:
            place = (scan, 0, *(slice(16 * b, 16 * b + 16) for b in block))
            error += float((predicted[place] - views["image"][place]).abs().sum())
            count += 16**dims
    assert 0 < count < views["image"].numel()
    assert loss == pytest.approx(error / count, rel=1e-5)


def test_visible_voxels_are_shown_as_they_are():
    method = micro.method("simmim").eval()
    views = micro.views(method, crop=CROP)
    hidden = covered(views["masked"], 16)
    with torch.no_grad():
        shown = method.show(views)
    assert torch.equal(shown["seen"].isnan(), hidden)
    for title in ("seen", "predicted"):
        assert torch.equal(shown[title][~hidden], views["image"][~hidden]), title
    assert not torch.equal(shown["predicted"][hidden], views["image"][hidden])


@pytest.mark.parametrize("settings", [{}, {"mask_block": 8, "decode_from": 8}], ids=str)
def test_what_is_hidden_does_not_reach_the_encoder(settings):
    method = micro.method("simmim", **settings).eval()
    views = micro.views(method, crop=CROP)
    hidden = covered(views["masked"], method.config.mask_block)
    with torch.no_grad():
        maps, predicted = method._predict(views)
        others, again = method._predict({**views, "image": views["image"].masked_fill(hidden, 100.0)})
        seen, _ = method._predict({**views, "image": views["image"].masked_fill(~hidden, 100.0)})
    assert all(torch.equal(a, b) for a, b in zip([*maps, *predicted], [*others, *again], strict=True))
    assert not torch.equal(maps[-1], seen[-1])


def test_each_decoded_map_answers_for_itself():
    """A finer map that knows the answer does not spare the last one its gradient."""
    method = micro.method("simmim", mask_block=8, decode_from=8)
    views = micro.views(method, crop=CROP)
    _, predicted = method._predict(views)
    assert len(predicted) == len(method.decoder.decoders) == 3
    told = [*(views["image"] for _ in predicted[:-1]), predicted[-1]]
    masked_l1(told, views["image"], covered(views["masked"], 8)).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.student.stages[3].blocks.parameters())


def test_the_share_that_is_hidden():
    method = micro.method("simmim", mask_ratio=0.6, mask_block=8)
    assert micro.views(method, crop=CROP)["masked"].float().mean() == pytest.approx(0.6, abs=1 / 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_block": 12}, r"mask_block must be a stride of the encoder, \[2, 4, 8, 16, 32\], got 12"),
        ({"decode_from": 64}, r"decode_from must be a stride of the encoder, .*, got 64"),
        ({"mask_ratio": 0.0}, "mask_ratio must lie between 0 and 1, got 0.0"),
        ({"mask_ratio": float("nan")}, "mask_ratio must lie between 0 and 1, got nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        micro.config("simmim", **settings)


def test_a_crop_that_its_blocks_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="block 32 does not divide crop 48x48x48"):
        micro.views(micro.method("simmim", mask_block=32), crop=(48, 48, 48))
