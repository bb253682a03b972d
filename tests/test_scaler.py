"""nnU-Net's fp16 with its scaler, on our optimiser: a step that overflows moves nothing."""

from __future__ import annotations

import micro
import pytest
import torch

from nnssl.finetune import Average, optimise
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_overflow_moves_nothing_and_the_next_step_does() -> None:
    """The order of calls is that of nnU-Net's `train_step`; our clipping is a hook of the step."""
    torch.manual_seed(0)
    network = SwinUNETR(1, 2, encoder=micro.ENCODER.to_dict(), decoder="light")
    optimizer, _ = optimise(network, Recipe(), micro.CPU)
    average = Average(network, optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    image = torch.randn(1, 1, 32, 32, 32)

    def step(overflows: bool) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(network(image).square().mean()).backward()
        if overflows:
            next(network.parameters()).grad[0] = torch.inf
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert torch.equal(step(overflows=True), before)
    assert scaler.get_scale() == 2.0**9
    moments = [x for state in optimizer.state.values() for x in state.values()]
    assert not any(x.any() for x in moments)
    after = step(overflows=False)
    assert after.isfinite().all()
    assert not torch.equal(after, before)
    assert scaler.get_scale() == 2.0**9
    average.use()
    assert all(p.isfinite().all() for p in network.parameters())
