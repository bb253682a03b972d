"""Losses, heads, decoders, schedules and the teacher against lightly, torch, naive loops and closed
forms.
"""

from __future__ import annotations

import math

import micro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.modules.heads import PrototypeHead, Prototypes
from nnssl.modules.losses import Centre, masked_l1, soft_cross_entropy
from nnssl.modules.running import Running, RunningMean, Standardise, discard_all, update_all
from nnssl.modules.schedules import cosine, ramp
from nnssl.modules.teacher import Teacher
from nnssl.modules.voxel_decoders import VoxelDecoder, unfold_cubes

TEMPERATURES = [(0.1, 0.04), (0.1, 0.07), (0.5, 0.2)]  # student, teacher


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- cross entropy and centres: lightly (MIT) is the oracle ----------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("student_t", "teacher_t"), TEMPERATURES)
@pytest.mark.parametrize(("batch", "prototypes"), [(1, 4), (3, 16), (5, 257)])
def test_cross_view_terms_are_dinos(batch, prototypes, student_t, teacher_t):
    from lightly.loss import DINOLoss

    oracle = DINOLoss(
        prototypes, teacher_temp=teacher_t, student_temp=student_t, center_momentum=0.9
    )
    centre = Centre(prototypes, momentum=0.9)
    for step in range(3):  # the centre moves between steps
        student, teacher = (
            randn(2, batch, prototypes, seed=step),
            randn(2, batch, prototypes, seed=100 + step),
        )
        expected = oracle(list(teacher), list(student))
        targets = centre.sharpen(teacher.flatten(0, 1), teacher_t)
        got = soft_cross_entropy(
            student.flatten(0, 1), targets.roll(batch, dims=0), student_t
        ).mean()
        update_all(centre)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(centre.value, oracle.center.flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("student_t", "teacher_t"), TEMPERATURES)
@pytest.mark.parametrize(("grid", "hidden"), [((6, 6, 6), 152), ((2, 3, 4), 7), ((4, 4), 1)])
def test_patch_term_is_ibots(grid, hidden, student_t, teacher_t):
    from lightly.loss import IBOTPatchLoss

    batch, prototypes = 3, 12
    oracle = IBOTPatchLoss(
        prototypes, teacher_temp=teacher_t, student_temp=student_t, center_momentum=0.9
    )
    masked = torch.stack(
        [randn(math.prod(grid), seed=i).argsort() < hidden for i in range(batch)]
    ).view(batch, *grid)
    centre = Centre(prototypes, momentum=0.9)
    for step in range(2):
        student, teacher = (
            randn(batch * hidden, prototypes, seed=step),
            randn(batch * hidden, prototypes, seed=9 + step),
        )
        # [B Z Y X] would be summed over two axes only
        expected = oracle(teacher, student, masked.view(batch, 1, -1))
        got = soft_cross_entropy(student, centre.sharpen(teacher, teacher_t), student_t).mean()
        update_all(centre)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            centre.value, oracle.center.value.flatten(), rtol=1e-5, atol=1e-6
        )


def test_cross_entropy_closed_forms():
    uniform = torch.full((4, 50), 1 / 50)
    equal = soft_cross_entropy(torch.zeros(4, 50), uniform, 0.1)
    torch.testing.assert_close(equal, torch.full((4,), math.log(50)))
    logits = randn(4, 50)
    target = F.softmax(logits / 0.1, dim=-1)
    entropy = -(target * target.log()).sum(dim=-1)
    torch.testing.assert_close(soft_cross_entropy(logits, target, 0.1), entropy)  # CE(p, p) = H(p)


def test_cross_entropy_is_computed_in_fp32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, centre = (randn(5, 9) @ randn(9, 9, seed=1)).requires_grad_(), Centre(9)
        target = centre.sharpen(logits, 0.04)
        loss = soft_cross_entropy(logits, target, 0.1)
    assert logits.dtype == torch.bfloat16
    assert target.dtype == loss.dtype == torch.float32


def test_targets_carry_no_gradient():
    logits = randn(3, 8).requires_grad_()
    assert not Centre(8).sharpen(logits, 0.04).requires_grad


def test_centre_waits_for_update_and_takes_the_mean_of_what_was_noted():
    centre, parts = Centre(8, momentum=0.75), [randn(3, 8, seed=i) for i in range(2)]
    first = centre.sharpen(parts[0], 0.1)
    second = centre.sharpen(parts[0], 0.1)
    assert torch.equal(first, second)
    assert torch.equal(centre.value, torch.zeros(8))
    centre.discard()
    for part in parts:
        centre.sharpen(part, 0.1)
    update_all(centre)
    torch.testing.assert_close(centre.value, 0.25 * torch.cat(parts).mean(dim=0))
    before = centre.value.clone()
    update_all(centre)  # nothing was noted since
    assert torch.equal(centre.value, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_centre_refuses_what_is_not_finite(bad):
    centre = Centre(4)
    centre.sharpen(torch.tensor([[bad, 0, 0, 0], [1, 1, 1, 1.0]]), 0.1)
    update_all(centre)
    assert torch.equal(centre.value, torch.zeros(4))
    centre.sharpen(torch.ones(1, 4), 0.1)
    update_all(centre)
    torch.testing.assert_close(centre.value, torch.full((4,), 0.1))


def test_centre_forgets_a_skipped_step():
    centre = Centre(4)
    centre.sharpen(torch.full((1, 4), 1e6), 0.1)
    centre.discard()
    update_all(centre)
    assert torch.equal(centre.value, torch.zeros(4))


# -- masked L1 -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 3, 4, 5), (3, 1, 4, 4)])
def test_masked_l1_against_a_loop(shape):
    """Views that hide different numbers of voxels weigh the same: batches may be cut anywhere."""
    predicted, target, masked = randn(*shape), randn(*shape, seed=1), randn(*shape, seed=2) > 0.3
    masked[0, :, 1:] = False
    means = []
    for view in range(len(masked)):
        rows = (tensor[view].flatten().tolist() for tensor in (predicted, target, masked))
        errors = [abs(p - t) for p, t, m in zip(*rows, strict=True) if m]
        means.append(sum(errors) / len(errors))
    got = float(masked_l1([predicted], target, masked))
    assert got == pytest.approx(sum(means) / len(means), rel=1e-5)
    alone = [
        masked_l1([p[None]], t[None], m[None])
        for p, t, m in zip(predicted, target, masked, strict=True)
    ]
    assert got == pytest.approx(float(sum(alone)) / len(alone), rel=1e-5)


def test_masked_l1_closed_forms():
    target, masked = randn(1, 1, 4, 4, 4), randn(1, 1, 4, 4, 4, seed=1) > 0
    assert float(masked_l1([target + 0.5], target, masked)) == pytest.approx(0.5)
    assert float(masked_l1([target], target, masked)) == 0
    assert float(masked_l1([target + 0.5, target - 1.5], target, masked)) == pytest.approx(1.0)
    wild = torch.where(masked, target, target + 1e3)  # what is visible does not count
    assert float(masked_l1([wild], target, masked)) == 0


def test_small_errors_count_by_their_square():
    target, masked = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for error, expected in ((0.5, 0.5 - 0.1), (0.2, 0.1), (0.02, 0.02**2 / 0.4)):
        assert float(masked_l1([target + error], target, masked, beta=0.2)) == pytest.approx(
            expected
        )


def test_masked_l1_of_nothing_hidden_is_zero_with_a_gradient():
    predicted = randn(1, 1, 4, 4).requires_grad_()
    loss = masked_l1(
        [predicted], torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


# -- heads -----------------------------------------------------------------------------


def test_logits_of_prototypes_are_in_fp32_under_autocast():
    """bf16 rounds at 0.004 near 1; divided by a temperature of 0.04 that is 0.1."""
    layer, x = Prototypes(8, 16), torch.nn.functional.normalize(randn(5, 8), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, layer(x))


@pytest.mark.parametrize("name", ["cpc", "rotation", "swinunetr"])
def test_no_trained_branch_of_a_contrast_is_behind_lagging_moments(name):
    assert not [module for module in micro.method(name).modules() if isinstance(module, Running)]


@pytest.mark.parametrize(("bottleneck", "count"), [(3, 5), (8, 32), (16, 7)])
def test_prototypes_are_a_weight_normed_layer_with_g_1(bottleneck, count):
    ours = Prototypes(bottleneck, count)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, count, bias=False))
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)  # g
        theirs.parametrizations.weight.original1.copy_(ours.weight)  # v
    x = randn(6, bottleneck).requires_grad_()
    ours(x).square().sum().backward()
    gradient, x.grad = x.grad, None
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(gradient, x.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original1.grad)


def test_head_gives_cosines():
    head = PrototypeHead(10, hidden=7, bottleneck=4, prototypes=50)
    x = randn(20, 10)
    logits = head(x)
    assert logits.shape == (20, 50)
    assert float(logits.detach().abs().max()) <= 1 + 1e-6
    bottleneck = head.mlp(head.standardise(x))
    expected = F.cosine_similarity(bottleneck[:, None], head.prototypes.weight[None], dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


# -- the voxel decoder -----------------------------------------------------------------


def test_cubes_unfold_as_a_loop_says_3d():
    stride, grid = 2, (2, 3, 1)
    cubes = randn(2, *grid, stride**3)
    volume = unfold_cubes(cubes.unflatten(-1, [stride] * 3))
    assert volume.shape == (2, 4, 6, 2)
    for z, y, x in torch.cartesian_prod(torch.arange(4), torch.arange(6), torch.arange(2)).tolist():
        within = (z % stride) * stride**2 + (y % stride) * stride + x % stride
        expected = cubes[:, z // stride, y // stride, x // stride, within]
        assert torch.equal(volume[:, z, y, x], expected)


def test_cubes_unfold_as_pixel_shuffle_2d():
    cubes = randn(2, 3, 5, 16)
    assert torch.equal(
        unfold_cubes(cubes.unflatten(-1, (4, 4))), F.pixel_shuffle(cubes.movedim(-1, 1), 4)[:, 0]
    )


@pytest.mark.parametrize(("size", "dims"), [((32, 32, 32), 3), ((16, 40, 32), 3), ((16, 48), 2)])
def test_decoder_cuts_off_what_lies_beyond_the_crop(size, dims):
    decoder = VoxelDecoder(channels=6, stride=32, spatial_dims=dims)
    tokens = randn(2, 6, *(math.ceil(s / 32) for s in size))
    voxels = decoder(tokens, size)
    assert voxels.shape == (2, 1, *size)
    first = (0,) * dims
    corner = decoder.to_voxels(tokens[(..., *first)])[:, 0]
    torch.testing.assert_close(voxels[(slice(None), 0, *first)], corner)


def test_decoder_needs_a_token():
    with pytest.raises(ValueError, match="larger crop"):
        unfold_cubes(torch.zeros(1, 0, 1, 1, 2, 2, 2))


# -- schedules -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("start", "end"), [(0.996, 1.0), (1e-3, 1e-6)])
def test_cosine_is_lightlys(start, end):
    from lightly.utils.scheduler import cosine_schedule

    for step in range(11):
        assert cosine(start, end, step / 10) == pytest.approx(
            cosine_schedule(step, 11, start, end), rel=1e-12
        )
    assert cosine(start, end, 0.5) == pytest.approx((start + end) / 2)
    assert (cosine(start, end, -1), cosine(start, end, 2)) == (start, end)


def test_ramp():
    at = [ramp(0.04, 0.07, p, begin=0.2, length=0.4) for p in (0, 0.2, 0.4, 0.6, 1)]
    assert at == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])
    assert (ramp(0.04, 0.07, 0.1, 0.2, 0), ramp(0.04, 0.07, 0.2, 0.2, 0)) == (0.04, 0.07)


# -- the teacher -----------------------------------------------------------------------


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    config = SwinConfig(
        embed_dim=8, depths=(2, 1, 1, 1), heads=(1, 1, 1, 1), drop_path=0.9, spatial_dims=2
    )
    return nn.Sequential(Swin(config, maskable=True)).train()


def test_teacher_starts_as_the_student_and_is_apart_from_it(student):
    teacher = Teacher(student)
    theirs = dict(teacher.model.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(theirs[name], parameter)
        assert theirs[name].data_ptr() != parameter.data_ptr()
        assert parameter.requires_grad
        assert not theirs[name].requires_grad


def test_teacher_is_an_exact_moving_average(student):
    teacher = Teacher(student)
    expected = [p.detach().clone() for p in student.parameters()]
    for step, momentum in enumerate([0.9, 0.996, 1.0, 0.0]):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(randn(*p.shape, seed=step))
        teacher.update(student, 1 - momentum)
        expected = [
            momentum * t + (1 - momentum) * s.detach()
            for t, s in zip(expected, student.parameters(), strict=True)
        ]
        for got, wanted in zip(teacher.model.parameters(), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_teacher_keeps_its_own_running_moments():
    student = nn.Sequential(Standardise(3), nn.Linear(3, 2))
    teacher = Teacher(student)
    student(randn(8, 3) + 5)
    update_all(student)
    teacher.update(student, 0.5)
    assert float(student[0].moments.value[0]) > 3
    assert torch.equal(teacher.model[0].moments.value, torch.tensor([0.0, 0, 0, 1, 1, 1]))


def test_standardise_uses_the_moments_of_earlier_steps_only():
    rows, layer = 3 * randn(64, 5) + 7, Standardise(5)
    # nothing is known yet: mean 0, std 1
    torch.testing.assert_close(layer(rows), rows, rtol=layer.eps, atol=0)
    update_all(layer)
    standardised = layer(rows)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        standardised.std(dim=0, correction=0), torch.ones(5), atol=1e-4, rtol=0
    )


def test_running_moments_of_parts_are_those_of_the_whole():
    rows, whole, parts = randn(12, 4), Standardise(4), Standardise(4)
    whole(rows)
    for part in rows.chunk(3):
        parts(part)
    for layer in (whole, parts):
        update_all(layer)
    torch.testing.assert_close(parts.moments.value, whole.moments.value)
    discard_all(parts)
    before = parts.moments.value.clone()
    update_all(parts)
    assert torch.equal(parts.moments.value, before)


@pytest.mark.parametrize("counts", [(4, 4), (1, 7), (0, 8), (5, 0, 3)])
def test_every_row_of_a_step_weighs_the_same_in_a_running_mean(counts):
    rows, whole, parts = randn(8, 4), RunningMean(4, 0.9), RunningMean(4, 0.9)
    whole.accumulate(rows)
    for part in rows.split(counts):
        parts.accumulate(part)
    update_all(whole)
    update_all(parts)
    torch.testing.assert_close(parts.value, whole.value)
    parts.accumulate(rows[:0])
    before = parts.value.clone()
    update_all(parts)  # a step without a row moves nothing
    assert torch.equal(parts.value, before)
    assert int(parts.updates) == 1


def test_teacher_is_never_stochastic_and_gets_no_gradient(student):
    holder = nn.ModuleDict({"student": student, "teacher": Teacher(student)}).train()
    teacher, image = holder["teacher"], randn(2, 1, 32, 32)
    assert holder["student"].training
    assert not any(module.training for module in teacher.modules())
    first, second = teacher(image), teacher(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(m.requires_grad for m in first)
    noisy = [holder["student"](image)[-1] for _ in range(3)]
    assert not torch.equal(noisy[0], noisy[1]) or not torch.equal(noisy[1], noisy[2])
