"""iBOT alone: its patch term against lightly and a naive loop, its masks, its shared head."""

from __future__ import annotations

import math

import micro
import pytest
import torch
from torch import Tensor

from nnssl.modules.losses import Centre, soft_cross_entropy
from nnssl.modules.running import discard_all, update_all
from nnssl.modules.selected import select_tokens
from nnssl.views.masking import draw_cuboids

pytestmark = pytest.mark.usefixtures("one_thread")

CROP = (32, 32, 32)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def synthetic_mask(grid: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    """Bool [len(counts) *grid] with so many hidden in each."""
    order = [randn(math.prod(grid), seed=i).argsort().argsort() for i in range(len(counts))]
    return torch.stack([o < count for o, count in zip(order, counts, strict=True)]).view(-1, *grid)


# -- the patch term --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("student_t", "teacher_t"), [(0.1, 0.04), (0.1, 0.07), (0.5, 0.2)])
@pytest.mark.parametrize("counts", [(5, 5), (1, 9, 4), (0, 7), (12, 0, 0, 3)])
@pytest.mark.parametrize("grid", [(3, 3, 3), (2, 3, 4), (4, 5)])
def test_the_patch_term_is_lightlys_where_views_hide_different_numbers(
    grid, counts, student_t, teacher_t
):
    from lightly.loss import IBOTPatchLoss

    prototypes = 12
    oracle = IBOTPatchLoss(
        prototypes, teacher_temp=teacher_t, student_temp=student_t, center_momentum=0.9
    )
    centre, hidden = Centre(prototypes, momentum=0.9), synthetic_mask(grid, counts)
    for step in range(3):
        student, teacher = (randn(sum(counts), prototypes, seed=seed + step) for seed in (0, 50))
        # [B Z Y X] would be summed over two of its axes only
        flat = hidden.view(len(counts), 1, -1)
        expected = oracle(teacher, student, flat)
        selected = select_tokens(hidden, sum(counts) + 4)  # rows that fill up count nowhere
        student, teacher = (torch.cat([rows, 9 * rows[:4]]) for rows in (student, teacher))
        target = centre.sharpen(teacher, teacher_t, selected.counts)
        got = selected.mean(soft_cross_entropy(student, target, student_t))
        update_all(centre)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            centre.value, oracle.center.value.flatten(), rtol=1e-5, atol=1e-6
        )


def test_the_patch_term_is_a_loop_over_views():
    counts = (3, 0, 5)
    hidden, values = synthetic_mask((2, 2, 2), counts), randn(sum(counts))
    means, at = [], 0
    for count in counts:
        means.append(sum(values[at : at + count].tolist()) / max(count, 1))
        at += count
    assert float(select_tokens(hidden, len(values)).mean(values)) == pytest.approx(
        sum(means) / 3, rel=1e-5
    )


def test_what_is_asked_for_is_what_the_mask_selects_filled_up_to_a_fixed_length():
    hidden, tokens = synthetic_mask((2, 3), (3, 0, 5)), randn(3, 7, 2, 3)
    selected = select_tokens(hidden, 10)
    assert selected.counts.tolist() == [1] * 8 + [0] * 2
    assert torch.equal(selected.of(tokens)[:8], tokens.movedim(1, -1)[hidden])
    assert len(selected.index.unique()) == 10
    assert len(select_tokens(hidden, 100).index) == hidden.numel()


def test_a_batch_that_hides_nothing_gives_a_finite_zero_with_a_gradient():
    method = micro.method("ibot", shared_head=False)
    views = micro.views(method, crop=CROP)
    views["hidden_blocks"] = torch.zeros_like(views["hidden_blocks"])
    losses = method(views).losses
    assert float(losses["patch"].detach()) == 0
    losses["total"].backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in method.parameters()
        if p.requires_grad
    )
    assert not any(p.grad.any() for p in method.student.patch_head.parameters())
    method.after_step(0.5)
    assert float(method.patch_centre.value.abs().sum()) == 0
    assert all(buffer.isfinite().all() for buffer in method.buffers())


# -- the method ------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_views_are_crossed_and_patches_are_not(shared):
    method = micro.method("ibot", shared_head=shared, local_views=1)
    views = micro.views(method, crop=CROP)
    image, hidden = views["global"].flatten(0, 1), views["hidden_blocks"].flatten(0, 1)
    with torch.no_grad():
        selected = select_tokens(hidden, int(hidden.sum()))
        teacher = method.teacher(image, None, selected)
        fine = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        student = method.student(image, fine, selected)
        local = method.student(views["local"].flatten(0, 1)).image
    discard_all(method)

    def ce(logits, target):
        return -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1)

    (t1, t2), (s1, s2) = teacher.image.chunk(2), student.image.chunk(2)
    pairs = [ce(s1, t2), ce(s2, t1), ce(local, t1), ce(local, t2)]
    patches, at = [], 0
    for count in hidden.flatten(1).sum(1).tolist():
        part = slice(at, at + count)
        patches.append(ce(student.patch[part], teacher.patch[part]).sum() / max(count, 1))
        at += count
    losses = method(views).losses
    torch.testing.assert_close(losses["image"], torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["patch"], torch.stack(patches).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["total"], losses["image"] + losses["patch"])


def test_what_is_hidden_does_not_reach_the_student():
    method = micro.method("ibot").eval()
    views = micro.views(method, crop=CROP)
    shown = method.show(views)
    covered = shown["student sees"].isnan()
    assert covered.any()
    assert torch.equal(shown["student sees"][~covered], shown["teacher sees"][~covered])
    other = {
        **views,
        "global": views["global"].masked_fill(covered.view_as(views["global"]), 100.0),
    }
    outputs = []
    for inputs in (views, other):
        student = []
        handle = method.student.register_forward_hook(
            lambda *args, to=student: to.append(args[-1].embedding)
        )
        method(inputs)
        handle.remove()
        outputs.append(student[0])
    assert torch.equal(*outputs)


def test_a_shared_head_is_one_and_stays_one_in_the_teacher():
    method = micro.method("ibot")
    for model in (method.student, method.teacher.model):
        assert model.patch_head.mlp is model.image_head.mlp
        assert model.patch_head.prototypes is model.image_head.prototypes
        assert model.patch_head.standardise is not model.image_head.standardise
    separate = micro.method("ibot", shared_head=False)
    assert len(list(separate.student.parameters())) > len(list(method.student.parameters()))


def test_centres_of_views_and_patches_are_apart():
    method = micro.method("ibot")
    method(micro.views(method, crop=CROP))
    method.after_step(0.0)
    assert not torch.equal(method.image_centre.value, method.patch_centre.value)


@pytest.mark.parametrize("block", [16, 32])
def test_patches_of_a_block_are_tokens_of_its_stride(block):
    method = micro.method("ibot", mask_block=block)
    views = micro.views(method, crop=(64, 64, 64))
    assert views["hidden_blocks"].shape == (2, 2, *(64 // block,) * 3)
    step = method(views)
    assert step.monitored["embedding"].shape[1] == method.encoder.channels[3 if block == 16 else 4]
    step.losses["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


# -- masks -----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("grid", [(6, 6, 6), (3, 3, 3), (2, 3, 1), (1, 1, 1), (14, 14), (1, 7)])
def test_boxes_hide_an_exact_number_of_cells(grid, ratio):
    for seed in range(5):
        masked = draw_cuboids(grid, ratio, generator(seed))
        assert masked.shape == grid
        assert int(masked.sum()) == max(1, round(ratio * math.prod(grid)))


def test_boxes_are_more_coherent_than_single_cells():
    """Of the neighbours of a hidden cell more are hidden than by chance."""

    def neighbours(masked: Tensor) -> float:
        return float((masked[1:] & masked[:-1]).sum() / masked[1:].sum().clamp(min=1))

    fraction = [neighbours(draw_cuboids((6, 6, 6), 0.3, generator(seed))) for seed in range(200)]
    assert sum(fraction) / len(fraction) > 0.5  # 0.3 where every cell is drawn by itself


def test_every_cell_is_reached():
    drawn = torch.stack(
        [draw_cuboids((3, 4), 0.3, source) for source in [generator()] for _ in range(500)]
    )
    assert float(drawn.float().mean(dim=0).min()) > 0.1


@pytest.mark.parametrize("chance", [0.5, 0.75, 1.0])
def test_views_are_masked_with_their_chance_and_never_none_of_a_scan(chance):
    method = micro.method("ibot", mask_chance=chance)
    drawn = torch.stack([method._draw_hidden((6, 6, 6), generator(seed)) for seed in range(400)])
    fraction = drawn.flatten(2).float().mean(dim=2)
    some = fraction > 0
    assert some.any(dim=1).all()
    assert float(some.float().mean()) == pytest.approx(chance, abs=0.07)
    assert float((some[:, 0].float().mean() - some[:, 1].float().mean()).abs()) < 0.15
    ratios = fraction[some]
    assert float(ratios.min()) >= 0.1 - 1 / 216
    assert float(ratios.max()) <= 0.5 + 1 / 216
    assert float(ratios.mean()) == pytest.approx(0.3, abs=0.02)
