"""SMIT alone: its ablations, its three terms, its schedules."""

from __future__ import annotations

import micro
import pytest
import torch

from nnssl.modules.running import discard_all
from nnssl.modules.selected import select_tokens
from nnssl.network.reconstruction import on_tokens, on_voxels

pytestmark = pytest.mark.usefixtures("one_thread")

CROP = (32, 32, 32)

# Each of SMIT's terms alone and every pair of them; and blocks for which other maps are read.
ABLATIONS = [
    {"w_mip": 0.0},
    {"w_itd": 0.0},
    {"w_mpd": 0.0},
    {"w_itd": 0.0, "w_mpd": 0.0},
    {"w_mip": 0.0, "w_mpd": 0.0},
    {"w_mip": 0.0, "w_itd": 0.0},
    {"w_mip": 0.0, "w_itd": 0.0, "mask_block": 8},
    {"w_mip": 0.0, "w_itd": 0.0, "mask_block": 32, "mask_ratio": 0.5},
    {"w_mip": 0.0, "mask_block": 8},
    {"teacher_views": 1},
]


@pytest.mark.parametrize(
    "settings", ABLATIONS, ids=lambda s: "-".join(f"{k}{v:g}" for k, v in s.items())
)
def test_smits_ablations_train(settings):
    method = micro.method(**settings)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    rows = micro.steps(method, 2, crop=(32, 32, 64))  # two blocks of 32: something is seen
    waiting = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert waiting == set()
    wanted = {term for term in ("mip", "itd", "mpd") if settings.get(f"w_{term}", 1) > 0}
    assert set(rows[0]) == wanted | {"total"}
    moved = {
        n for n, p in method.named_parameters() if p.requires_grad and not torch.equal(p, before[n])
    }
    assert moved == {n for n, p in method.named_parameters() if p.requires_grad}


def test_smit_segments_the_parcels_of_its_first_view():
    """The term of parcels alone, against the parcels cut from the region by hand."""
    method = micro.method(w_parcels=0.5, classes=3).eval()
    samples = [micro.SyntheticCrops(method.region(CROP))[index] for index in range(2)]
    views = micro.prepare_views(method, samples)
    first = views["image"][0]
    corners = (views["offset"][0] - views["start"]).tolist()
    parcels = [
        sample["parcels"][tuple(slice(c, c + s) for c, s in zip(corner, CROP, strict=True))]
        for sample, corner in zip(samples, corners, strict=True)
    ]
    expected, _ = method.segmenter.loss(method.student.encoder(first), first, torch.stack(parcels))
    losses = method(views).losses
    torch.testing.assert_close(losses["parcels"], expected)
    others = sum(
        getattr(method.config, f"w_{name}") * losses[name] for name in ("mip", "itd", "mpd")
    )
    torch.testing.assert_close(losses["total"], others + 0.5 * expected)
    assert method.network_decoder is method.segmenter
    assert method.encoder is method.student.encoder


def test_smit_learns_parcels_by_heart():
    rows = micro.steps(micro.method(w_parcels=1.0, classes=3), 30, lr=3e-3, fixed=True)
    assert rows[-1]["parcels"] < 0.8 * rows[0]["parcels"]


def test_smit_pretrains_one_decoder_only():
    with pytest.raises(ValueError, match="set decoder=linear, or w_parcels=0"):
        micro.config(w_parcels=1.0, decoder="light")


def test_smits_total_is_the_weighted_sum():
    method = micro.method(w_mip=0.5, w_itd=0.25, w_mpd=2.0)
    losses = method(micro.views(method)).losses
    expected = 0.5 * losses["mip"] + 0.25 * losses["itd"] + 2 * losses["mpd"]
    torch.testing.assert_close(losses["total"], expected)


def test_smits_global_loss_is_crossed_and_its_patch_loss_is_not():
    """Two equal views: crossed or not is the same. One view replaced: only the crossed term of the
    other changes.
    """
    method = micro.method()
    views = micro.views(method, batch=1)
    image, masked = views["image"], views["hidden_blocks"]
    masked = masked.flatten(0, 1)
    selected = select_tokens(masked, int(masked.sum()))
    student = method.student(image.flatten(0, 1), on_tokens(masked, method.config), selected)
    teacher = method.teacher(image.flatten(0, 1), None, selected)

    def ce(logits, target):
        return -(target / 0.04).softmax(-1).mul((logits / 0.1).log_softmax(-1)).sum(-1).mean()

    losses = method(views).losses
    crossed = (
        ce(student.image[:1], teacher.image[1:]) + ce(student.image[1:], teacher.image[:1])
    ) / 2
    torch.testing.assert_close(losses["itd"], crossed)
    torch.testing.assert_close(losses["mpd"], ce(student.patch, teacher.patch))


@pytest.mark.parametrize("settings", [{}, {"visible_only": True, "mask_block": 8}], ids=str)
def test_smits_teacher_of_one_view(settings):
    """It tells of the patches of view 1, and view 2 what view 1 is as a whole; as a loop over
    scans.
    """
    method = micro.method(teacher_views=1, **settings)
    views = micro.views(method, batch=2, crop=CROP)
    called = []
    method.teacher.register_forward_hook(lambda _, args, answer: called.append((args, answer)))
    method.student.register_forward_hook(lambda _, args, answer: called.append((args, answer)))
    out = method(views)
    student, teacher = (answer for _, answer in called)
    assert torch.equal(called[1][0][0], views["image"][0])
    assert len(teacher.embedding) == 2
    assert (
        len(out.monitored["teacher_patch"]) == len(student.patch) == int(views["selected"][0].sum())
    )

    def ce(logits, target):
        return -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1)

    itd = mpd = first = 0
    for scan in range(2):
        itd += ce(student.image[2 + scan], teacher.image[scan]) / 2
        last = first + int(views["selected"][0, scan].sum())
        mpd += ce(student.patch[first:last], teacher.patch[first:last]).mean() / 2
        first = last
    torch.testing.assert_close(out.losses["itd"], itd)
    torch.testing.assert_close(out.losses["mpd"], mpd)
    both = micro.method(**settings)(views).losses["mip"]
    torch.testing.assert_close(out.losses["mip"], both)


def test_smits_voxel_loss_counts_hidden_voxels_only():
    method = micro.method(w_itd=0.0, w_mpd=0.0, decode_from=32, smooth_l1=0.0)
    views = micro.views(method, crop=CROP)
    hidden = views["hidden_blocks"]
    for axis in (2, 3, 4):
        hidden = hidden.repeat_interleave(16, axis)
    with torch.no_grad():
        shown = method.eval().show(views)
    error = (shown["predicted"] - shown["teacher sees"]).abs()
    covered = hidden.flatten(0, 1).unsqueeze(1)
    assert float(error[~covered].abs().max()) == 0
    torch.testing.assert_close(method(views).losses["mip"], error[covered].mean())
    assert torch.equal(shown["student sees"][~covered], shown["teacher sees"][~covered])
    assert shown["student sees"][covered].isnan().all()


def test_what_is_hidden_does_not_reach_smits_student():
    method = micro.method(w_itd=0.0, w_mpd=0.0).eval()
    views = micro.views(method, crop=CROP)
    covered = views["hidden_blocks"]
    for axis in (2, 3, 4):
        covered = covered.repeat_interleave(16, axis)
    other = views["image"].masked_fill(covered.unsqueeze(2), 100.0)
    masked = on_tokens(views["hidden_blocks"].flatten(0, 1), method.config)
    first, second = (
        method.student(image.flatten(0, 1), masked, wanted=range(5)).maps
        for image in (views["image"], other)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_its_terms_smits_teacher_is_not_computed_and_still_follows(monkeypatch):
    method = micro.method(w_itd=0.0, w_mpd=0.0)
    monkeypatch.setattr(method.teacher, "forward", lambda *_: pytest.fail("computed for nothing"))
    out = method(micro.views(method, crop=CROP))
    assert out.monitored["embedding"].shape == (4, method.encoder.channels[3])  # two views of two
    assert not out.monitored["embedding"].requires_grad
    out.losses["total"].backward()
    before = method.encoder.patch_embed.proj.weight.clone()
    with torch.no_grad():
        method.student.encoder.patch_embed.proj.weight += 1
    method.after_step(0.0)
    assert not torch.equal(method.encoder.patch_embed.proj.weight, before)


def test_smits_teacher_starts_equal_gets_no_gradient_and_follows():
    method = micro.method(teacher_momentum=0.5)
    pairs = list(zip(method.student.parameters(), method.teacher.model.parameters(), strict=True))
    assert all(torch.equal(s, t) for s, t in pairs)
    old = [t.clone() for _, t in pairs]
    micro.steps(method, 1)  # progress 1 at its end: momentum 1, the teacher stays
    assert all(torch.equal(t, o) for (_, t), o in zip(pairs, old, strict=True))
    method.after_step(0.0)
    for (student, teacher), before in zip(pairs, old, strict=True):
        torch.testing.assert_close(teacher, (student.detach() + before) / 2)
        assert teacher.grad is None


def test_smit_holds_its_prototypes_at_the_start():
    method = micro.method(freeze_prototypes=0.5)
    # a crop of one hidden block would leave nothing to tell apart
    views = micro.views(method, crop=(32, 32, 32))
    weight = method.student.patch_head.prototypes.weight
    for progress, held in ((0.0, True), (0.4, True), (0.5, False)):
        method.zero_grad()
        method(views).losses["total"].backward()
        assert (float(weight.grad.abs().sum()) == 0) is held
        method.after_step(progress + 0.4 if held and progress == 0 else 0.5)


def test_smits_temperature_warms_up_and_the_patch_head_later():
    method = micro.method(temperature_warmup=0.1)
    for progress, image, patch in (
        (0, 0.04, 0.04),
        (0.05, 0.055, 0.04),
        (0.1, 0.07, 0.04),
        (0.15, 0.07, 0.055),
    ):
        method.progress = progress
        assert method.teacher_temperature() == pytest.approx(image)
        assert method.teacher_temperature(delay=0.1) == pytest.approx(patch)


@pytest.mark.parametrize(
    ("block", "stride", "most"),
    [("16", 16, 256), ("16x8x8", 8, 256), ("8", 8, 10), ("4", 4, 0), ("8x16x4", 4, 30)],
)
def test_smits_patch_heads_see_hidden_tokens_and_not_too_many(block, stride, most):
    method = micro.method(mask_block=block, patch_tokens=most)
    views = micro.views(method, crop=CROP)
    hidden, selected = views["hidden_blocks"].flatten(0, 1), views["selected"].flatten(0, 1)
    assert selected.shape[1:] == tuple(32 // stride for _ in range(3))
    covered = on_voxels(hidden, method.config)[:, 0, ::stride, ::stride, ::stride]
    assert not bool((selected & ~covered).any())
    counts = (
        covered.flatten(1).sum(1).clamp(max=most or None) if most else covered.flatten(1).sum(1)
    )
    assert torch.equal(selected.flatten(1).sum(1), counts)
    method(views).losses["mpd"].backward()


def test_smits_patch_loss_is_a_mean_over_views_that_hide_different_numbers():
    """So that a batch may be cut into parts anywhere."""
    method = micro.method(w_mip=0.0, w_itd=0.0, mask_block=8)
    views = micro.views(method, batch=2, crop=(16, 16, 32))
    views["selected"][:, 0] &= torch.rand(views["selected"][:, 0].shape) < 0.5
    whole = method(views).losses["mpd"]
    discard_all(method)
    names = ("image", "hidden_blocks", "selected")
    parts = [
        method({name: views[name][:, i : i + 1] for name in names}).losses["mpd"] for i in range(2)
    ]
    torch.testing.assert_close(whole, sum(parts) / 2)


@pytest.mark.parametrize("kept", ["teacher", "student"])
def test_smits_export(kept):
    method = micro.method(export=kept)
    source = method.teacher.model if kept == "teacher" else method.student
    assert method.encoder is source.encoder


def test_smit_refuses_a_crop_that_its_blocks_do_not_divide():
    method = micro.method(mask_block=32)
    with pytest.raises(ValueError, match="block 32 does not divide crop 48x48x48"):
        micro.views(method, crop=(48, 48, 48))
