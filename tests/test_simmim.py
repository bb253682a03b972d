"""SimMIM: what counts in its loss, what its encoder may not see, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

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
    method = micro.method(
        "simmim", spatial_dims=dims, decode_from=32, smooth_l1=0.0, mask_air=True
    ).eval()
    views = micro.views(method, crop=CROP[:dims])
    with torch.no_grad():
        predicted = method.show(views)["predicted"]
        loss = float(method.loss(views).losses["total"])
    error, count = 0.0, 0
    for scan, *block in itertools.product(range(2), *(range(2),) * dims):
        if views["hidden_blocks"][(scan, *block)]:
            voxels = (scan, 0, *(slice(16 * b, 16 * b + 16) for b in block))
            error += float((predicted[voxels] - views["image"][voxels]).abs().sum())
            count += 16**dims
    assert 0 < count < views["image"].numel()
    assert loss == pytest.approx(error / count, rel=1e-5)


def test_visible_voxels_are_shown_as_they_are():
    method = micro.method("simmim").eval()
    views = micro.views(method, crop=CROP)
    hidden = covered(views["hidden_blocks"], 16)
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
    hidden = covered(views["hidden_blocks"], method.config.mask_block[0])
    with torch.no_grad():
        maps, predicted = method._predict(views)
        others, again = method._predict(
            {**views, "image": views["image"].masked_fill(hidden, 100.0)}
        )
        unmasked, _ = method._predict(
            {**views, "image": views["image"].masked_fill(~hidden, 100.0)}
        )
    read = [(a, b) for a, b in zip(maps, others, strict=True) if a is not None]  # by the decoder
    assert len(read) >= len(predicted)
    assert all(torch.equal(a, b) for a, b in [*read, *zip(predicted, again, strict=True)])
    assert not torch.equal(maps[-1], unmasked[-1])


def test_each_decoded_map_answers_for_itself():
    """A finer map that knows the answer does not spare the last one its gradient."""
    method = micro.method("simmim", mask_block=8, decode_from=8)
    views = micro.views(method, crop=CROP)
    _, predicted = method._predict(views)
    assert len(predicted) == len(method.decoder.decoders) == 3
    outputs = [*(views["image"] for _ in predicted[:-1]), predicted[-1]]
    masked_l1(outputs, views["image"], covered(views["hidden_blocks"], 8)).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.student.stages[3].blocks.parameters())


def test_the_share_that_is_hidden():
    method = micro.method("simmim", mask_ratio=0.6, mask_block=8)
    hidden = micro.views(method, crop=CROP)["hidden_blocks"]
    assert hidden.float().mean() == pytest.approx(0.6, abs=1 / 64)


@pytest.mark.parametrize("name", ["simmim", "smit"])
@pytest.mark.parametrize("settings", [{}, {"decode_from": 4}, {"mask_block": "16x8x8"}], ids=str)
def test_air_is_neither_hidden_nor_scored(name, settings):
    """A region of which one half is one constant: all hidden blocks are of the other half."""
    method = micro.method(name, mask_ratio=0.5, **settings)
    size = method.region((32, 32, 32))
    regions = torch.full((2, 1, *size), -1.8)
    regions[:, :, : size[0] // 2] = torch.randn(
        2, 1, size[0] // 2, *size[1:], generator=torch.Generator()
    )
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    views = method.prepare_views(regions, generators, torch.arange(2))
    image, masked = (views[key].flatten(0, -4).unsqueeze(1) for key in ("image", "hidden_blocks"))
    block = method.config.mask_block.along(3)
    hidden = masked
    for axis, side in enumerate(block):
        hidden = hidden.repeat_interleave(side, axis + 2)
    cells = image
    for axis, side in enumerate(block):
        cells = cells.unfold(axis + 2, side, side)
    cells = cells[:, 0].flatten(4)[:, None]
    shows = (cells.amax(-1) - cells.amin(-1)) > 0
    assert 0 < int(shows.sum()) < shows.numel()
    assert not bool((masked & ~shows).any())
    counts = [math.ceil(0.5 * int(n)) for n in shows.flatten(1).sum(1)]
    assert masked.flatten(1).sum(1).tolist() == counts
    losses = method(views).losses
    assert torch.isfinite(losses["total"])
    assert len(method.decoder.decoders) == (4 if "decode_from" in settings else 3)


@pytest.mark.parametrize("name", ["simmim", "smit"])
def test_a_view_of_air_alone_gives_a_loss_of_zero_and_a_gradient(name):
    method = micro.method(name, **({"w_itd": 0.0} if name == "smit" else {}))
    regions = torch.full((1, 1, *method.region(CROP)), -1.8)
    losses = method(method.prepare_views(regions, [torch.Generator()], torch.zeros(1))).losses
    losses["total"].backward()
    assert float(losses["total"].detach()) == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_blocks_are_written_as_they_are_read():
    config = micro.config("simmim", mask_block="16x8x8")
    assert config.mask_block == (16, 8, 8)
    assert str(config.mask_block) == "16x8x8"
    assert type(config).parse(["mask_block=16x8x8"]).mask_block == (16, 8, 8)
    stored = json.loads(json.dumps(asdict(config)))
    assert type(config)(**stored) == config
    # of an earlier version
    assert type(config)(**{**stored, "mask_block": 8}).mask_block.along(2) == (8, 8)
    with pytest.raises(ValueError, match="mask_block=16x8x8 has 3 sides for 2 axes"):
        config.mask_block.along(2)


def test_a_crop_that_its_blocks_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="block 32 does not divide crop 48x48x48"):
        micro.views(micro.method("simmim", mask_block=32), crop=(48, 48, 48))
