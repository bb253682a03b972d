"""bf16 where it is safe: how far losses and gradients are from fp32, for every method, and what
stays in fp32.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import micro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from nnssl.encoder.attention import fused
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS
from nnssl.modules.heads import pooled
from nnssl.modules.late import hold
from nnssl.train import optimiser, precision
from nnssl.train.optimiser import clip
from nnssl.train.precision import Precision, half_precision
from nnssl.train.run import Run, RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")
LOSS, GRADIENT = 1e-2, 0.1  # relative errors; bf16 rounds at 0.004


def step(name: str, bf16: bool) -> tuple[dict, torch.Tensor, Run]:
    """Losses, the gradient as one vector, and the run, of one step on the same views."""
    method = micro.method(name)
    crops = micro.SyntheticCrops(method.region((32, 32, 32)))
    run = Run(method, crops, RunConfig(6, 2, bf16=bf16), Path(), micro.header(name), micro.CPU)
    # oneDNN's bf16 gradient of a convolution's weight reads memory that nobody wrote, on some maps
    # of a few voxels (torch 2.14, under plain autocast too); PyTorch's own convolutions do not
    with torch.backends.mkldnn.flags(enabled=False):
        losses, monitored = run.gradients([default_collate([crops[0], crops[1]])])
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in (*losses.values(), *monitored.values()))
    return losses, torch.cat([g.flatten() for g in gradients]), run


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_near_those_in_fp32(name: str) -> None:
    exact, wanted, _ = step(name, bf16=False)
    losses, got, run = step(name, bf16=True)
    for term, value in exact.items():
        assert float(losses[term]) == pytest.approx(float(value), rel=LOSS, abs=LOSS), term
    error = float((got - wanted).norm() / wanted.norm())
    assert 0 < error < GRADIENT
    run.update()
    tensors = [x for x in run.method.state_dict().values() if isinstance(x, torch.Tensor)]
    assert {x.dtype for x in tensors} <= {torch.float32, torch.int64}
    assert all(isinstance(p, torch.nn.Parameter) for p in run.method.parameters())


class Casts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ == "_to_copy":
            self.count += kwargs.get("dtype", args[0].dtype) != args[0].dtype
        return function(*args, **kwargs)


def test_an_encoder_casts_its_image_and_nothing_else(monkeypatch) -> None:
    torch.manual_seed(0)
    encoder = Swin(micro.ENCODER, maskable=True)
    kept = Precision(encoder, micro.CPU, torch.bfloat16)
    image, masked = torch.randn(2, 1, 32, 32, 32), torch.rand(2, 16, 16, 16) < 0.5
    # PyTorch's own attention, which a GPU does not take, casts inside
    monkeypatch.setattr(fused, "attention", lambda qkv, bias, mask: qkv[:, :, 0].flatten(2))
    with kept.weights(), kept.autocast(), Casts() as casts:
        maps = encoder(image, masked)
    assert casts.count == 1
    assert {tokens.dtype for tokens in maps} == {torch.bfloat16}
    assert pooled(maps[-1]).dtype == torch.float32


def test_weights_are_cast_once_a_step_and_are_themselves_again_after_it(monkeypatch) -> None:
    calls = []
    cast = precision._cast
    monkeypatch.setattr(precision, "_cast", lambda *args: calls.append(args) or cast(*args))
    method = micro.method("smit")
    crops = micro.SyntheticCrops(method.region(micro.CROP))
    run = Run(method, crops, RunConfig(6, 4, 2, bf16=True), Path(), micro.header("smit"), micro.CPU)
    before = dict(method.named_parameters())
    run.gradients([default_collate([crops[0], crops[1]]), default_collate([crops[2], crops[3]])])
    # to bf16: the student's, the teacher's; and back, the gradients of each part
    assert [kind for _, kind in calls] == [torch.bfloat16] * 2 + [torch.float32] * 2
    after = dict(method.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())


def test_weights_are_cast_in_parts_with_the_same_gradients(monkeypatch) -> None:
    whole = step("simmim", bf16=True)[1]
    calls, cast = [], precision._cast
    monkeypatch.setattr(precision, "_cast", lambda *args: calls.append(args) or cast(*args))
    monkeypatch.setattr(precision, "PART", 1000)
    # as one of several processes: a single one casts all at once
    monkeypatch.setattr(precision, "dist", SimpleNamespace(is_initialized=lambda: True))
    assert torch.equal(step("simmim", bf16=True)[1], whole)
    numbers = [[w.numel() for w in weights] for weights, _ in calls if weights]
    assert len(numbers) > 6
    assert all(sum(part) < 1000 + max(part) for part in numbers)


def test_an_error_leaves_the_weights_as_they_were() -> None:
    method = micro.method("simmim")

    def fails() -> None:
        with Precision(method, micro.CPU, torch.bfloat16).weights():
            assert method.student.mask_token.dtype == torch.bfloat16
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fails()
    assert {p.dtype for p in method.parameters()} == {torch.float32}


def test_prototypes_and_position_biases_stay_in_fp32() -> None:
    method = micro.method("smit")
    with Precision(method, micro.CPU, torch.bfloat16).weights():
        kept = {n for n, p in method.student.named_parameters() if p.dtype == torch.float32}
    assert {name.rsplit(".", 2)[-2] for name in kept} == {"prototypes", "attn"}


def test_checkpointed_blocks_are_computed_again_in_the_same_precision() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Swin(micro.ENCODER, checkpointing=checkpointing).train()
        kept = Precision(encoder, micro.CPU, torch.bfloat16)
        with kept.weights():
            with kept.autocast():
                maps = encoder(torch.ones(1, 1, 16, 16, 16))
            sum(tokens.float().square().sum() for tokens in maps).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("capability", "half"),
    [((7, 0), None), ((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_bf16_only_where_the_device_computes_in_it(monkeypatch, capability, half) -> None:
    """U8: V100 is 7.0, T4 7.5, A100 8.0, H100 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert half_precision(torch.device("cuda", 0)) is half


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_other_devices_train_in_fp32(device) -> None:
    assert half_precision(torch.device(device)) is None


def test_clipping_is_pytorchs() -> None:
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    weights.append(torch.nn.Parameter(torch.zeros(1)))  # without a gradient
    for most in (0.5, 1e3):
        norms, clipped = [], []
        for function in (clip, torch.nn.utils.clip_grad_norm_):
            torch.manual_seed(1)
            for weight in weights[:2]:
                weight.grad = torch.randn_like(weight)
            norms.append(function(weights, most))
            clipped.append(torch.cat([weight.grad.flatten() for weight in weights[:2]]))
        assert torch.equal(*norms)
        torch.testing.assert_close(*clipped)


def test_the_optimiser_clips_by_itself() -> None:
    """Its step on a gradient, short or long, equals one on the clipped gradient."""
    for length in (0.1, 30.0):
        moved = []
        for clipped in (False, True):
            torch.manual_seed(1)
            weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
            optimizer = torch.optim.AdamW(weights, weight_decay=0.1, fused=True)
            for weight in weights:
                weight.grad = length * torch.randn_like(weight)
            if clipped:
                clip(weights, 1.0)
            norm, finite = optimiser.clip_and_step(
                optimizer, weights, torch.device("cpu"), 1.0, lambda: 1e-2
            )
            assert bool(finite)
            assert (float(norm) > 1.01) == (length > 1 and not clipped)
            assert optimizer.param_groups[0]["lr"] == 1e-2
            moved.append(torch.cat([weight.detach().flatten() for weight in weights]))
        torch.testing.assert_close(*moved)


def test_a_limit_of_zero_clips_nothing() -> None:
    moved = []
    for most in (0.0, 1e9):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], fused=True)
        weight.grad = torch.tensor([5.0, 0.0, -7.0])
        optimiser.clip_and_step(optimizer, [weight], torch.device("cpu"), most, lambda: 0.5)
        moved.append(weight.detach())
        weight.grad = torch.tensor([5.0, 0.0, -7.0])
        clip([weight], most)
        assert weight.grad.tolist() == [5.0, 0.0, -7.0]
    assert torch.equal(*moved)
    assert moved[0].tolist() != [1.0, 1.0, 1.0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_weight_that_waited_starts_like_a_new_one(monkeypatch, fused: bool) -> None:
    """AdamW's corrections count from its first gradient, not from the first step."""
    if not fused:
        monkeypatch.setattr(optimiser, "FUSED", ())
    gradients = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    paths = []
    for waits in (0, 500):
        weight, now = torch.nn.Parameter(torch.zeros(4)), [0]
        hold(weight, lambda now=now, waits=waits: now[0] >= waits)
        optimizer = torch.optim.AdamW([weight], weight_decay=0.0, fused=fused)
        path = []
        for step in range(waits + len(gradients)):
            now[0] = step
            optimizer.zero_grad()
            (weight @ gradients[max(step - waits, 0)]).backward()
            optimiser.clip_and_step(optimizer, [weight], torch.device("cpu"), 0.0, lambda: 1e-2)
            path.append(weight.detach().clone())
        assert all(not position.any() for position in path[:waits])
        paths.append(torch.stack(path[waits:]))
    torch.testing.assert_close(*paths)
