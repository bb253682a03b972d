"""What a step asks of a GPU, counted without one."""

from __future__ import annotations

from dataclasses import replace

import micro
import pytest
import torch

from nnssl.bench import operations
from nnssl.bench.lent import META, lent
from nnssl.encoder.presets import preset


def test_what_is_counted() -> None:
    x, weight = torch.zeros(4, 3, device=META), torch.zeros(5, 3, device=META, requires_grad=True)
    with operations.Count() as count:
        y = torch.nn.functional.linear(x, weight).T
        y.bfloat16().sum()
        torch.zeros(2).to(META)
        torch.zeros(2) + 1  # not the device's
    assert count.kernels == {"mm": 1, "_to_copy": 1, "sum": 1}
    assert count.flops == 2 * 4 * 3 * 5
    assert (count.casts, count.copies) == (1, 1)
    assert count.views == 2  # weight.T and y


def test_a_step_of_smit_stays_small() -> None:
    """Preset smit at 96^3, of which the counts do not depend on how wide it is."""
    small = replace(preset("smit"), embed_dim=16, heads=(1, 1, 2, 2))
    parts = operations.counted("smit", small, (96, 96, 96), 2)
    assert sum(part.total for part in parts.values()) < 900
    assert sum(part.casts for part in parts.values()) < 60
    assert parts["gradients"].kernels["window attention"] == 36
    assert parts["gradients"].kernels["window attention, backward"] == 18
    # a norm each, one where each stage begins, and its last residual
    assert parts["gradients"].kernels["residual and norm"] == 2 * (2 * 18 + 4)
    assert parts["gradients"].kernels["residual and norm, backward"] == 2 * 18 + 4


def test_visible_blocks_alone_are_less_than_half_of_a_step() -> None:
    """Preset smit at 96^3, 8 scans, mask tokens from stride 16; from stride 8 they are not."""

    def cost(variant: str) -> tuple[int, int]:
        parts = operations.counted(variant, preset("smit"), (96, 96, 96), 8).values()
        return sum(part.flops for part in parts), sum(part.bytes for part in parts)

    dense, later, early = (
        cost(f"simmim{settings}")
        for settings in (
            "",
            ":visible_only=true,decode_from=16",
            ":visible_only=true",
        )
    )
    assert all(a < 0.5 * b for a, b in zip(later, dense, strict=True))
    assert all(a > 0.5 * b for a, b in zip(early, dense, strict=True))


def test_the_first_stages_attention_moves_less_than_a_third() -> None:
    found = operations.attention_bytes(preset("smit"), (48, 48, 48), 2)
    *others, kernel = found.values()
    assert kernel < min(others) / 3


def test_the_command_prints_its_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(operations, "preset", lambda *_: micro.ENCODER)
    operations.main(["--methods", "simmim", "--crop", "32", "32", "32", "--batch-size", "1"])
    out = capsys.readouterr().out
    assert "| simmim | " in out
    assert "the Triton kernel" in out


def test_what_is_lent_is_given_back() -> None:
    def fails() -> None:
        with lent():
            torch.Generator("meta").manual_seed(0)
            raise RuntimeError("broken")

    before = torch.autocast, torch.Generator, torch.tensor
    with pytest.raises(RuntimeError, match="broken"):
        fails()
    assert (torch.autocast, torch.Generator, torch.tensor) == before
