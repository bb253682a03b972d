"""Windows where MONAI's are wrong, and attention in the cache: against loops and formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nnssl.cpu import window_attention as cached
from nnssl.encoder import blocks
from nnssl.encoder.windows import Mask, stage_windows

CPU = torch.device("cpu")


# --- exact windows, by a loop over pairs ---------------------------------------------------------


def attention_by_pairs(
    attention: blocks.WindowAttention, x: Tensor, window: int, shifted: bool
) -> Tensor:
    """[*grid C] to the same: who shares a window with whom is decided pair by pair from true
    positions.
    """
    grid = x.shape[:-1]
    shift = [window // 2 if shifted and g > window else 0 for g in grid]
    heads, d = attention.heads, x.shape[-1] // attention.heads
    q, k, v = attention.qkv(x).unflatten(-1, (3, heads, d)).unbind(-3)
    out = torch.empty(*grid, heads, d)

    def home(position: tuple[int, ...]) -> list[int]:
        return [(p - s) // min(window, g) for p, s, g in zip(position, shift, grid, strict=True)]

    positions = list(itertools.product(*map(range, grid)))
    for i in positions:
        others = [j for j in positions if home(j) == home(i)]
        rows = [0] * len(others)
        for axis in range(len(grid)):
            rows = [r * (2 * window - 1) + i[axis] - j[axis] + window - 1
                    for r, j in zip(rows, others, strict=True)]  # fmt: skip
        index = tuple(torch.tensor(others).T)
        scores = (q[i] * k[index]).sum(-1) / d**0.5 + attention.relative_position_bias_table[rows]
        out[i] = (scores.softmax(0)[..., None] * v[index]).sum(0)
    return attention.proj(out.flatten(-2))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((8, 4), 4),
        ((3, 9), 4),
        ((6, 5), 4),
        ((10, 7), 7),
        ((3, 5, 4), 4),
        ((2, 6, 3), 3),
        ((1, 1, 1), 4),
    ],
)
def test_exact_windows_equal_a_loop_over_pairs(
    grid: tuple[int, ...], window: int, shifted: bool
) -> None:
    """True offsets decide the bias, also in clipped windows; padding and the wrapped-around side
    take no part.
    """
    torch.manual_seed(0)
    attention = blocks.WindowAttention(24, 2, window, len(grid), qkv_bias=True)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    windows = stage_windows(grid, window, "exact", CPU)
    partition = windows.shifted if shifted else windows.plain
    x = torch.randn(2, *grid, 24)
    tokens = blocks.to_slots(x.flatten(1, -2)[:, partition.tokens], partition, pads_are_zero=False)
    rows = attention.relative_position_bias_table[windows.relative]
    bias = rows.unflatten(0, (math.prod(partition.size),) * 2).permute(2, 0, 1)
    got = blocks.from_slots(attention(tokens, partition, bias), partition)
    for sample in range(2):
        expected = attention_by_pairs(attention, x[sample], window, shifted)
        torch.testing.assert_close(
            got[sample], expected.flatten(0, -2)[partition.tokens], rtol=1e-5, atol=1e-5
        )


def test_monai_windows_are_another_function_where_monai_clips() -> None:
    """The compatibility flag is no idle one: the two modes differ on 3 tokens in a window of 4."""
    exact, monai = (stage_windows((3, 3, 3), 4, mode, CPU).relative for mode in ("exact", "monai"))
    assert (exact != monai).float().mean() > 0.9


@pytest.mark.parametrize(("grid", "window"), [((9, 6), 4), ((5, 9, 3), 4), ((8, 8, 8), 4)])
def test_ways_between_window_orders_are_permutations(grid: tuple[int, ...], window: int) -> None:
    windows = stage_windows(grid, window, "exact", CPU)
    raster = torch.arange(windows.plain.tokens.numel())
    assert torch.equal(raster[windows.raster_to_plain[0]], windows.plain.tokens)
    assert torch.equal(
        raster[windows.raster_to_plain[0]][windows.plain_to_shifted[0]], windows.shifted.tokens
    )
    assert torch.equal(windows.shifted.tokens[windows.shifted_to_raster[0]], raster)
    for index, inverse in (
        windows.raster_to_plain,
        windows.plain_to_shifted,
        windows.shifted_to_raster,
    ):
        assert torch.equal(index[inverse], raster)


# --- attention in the cache
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 64, 1 << 18])
@pytest.mark.parametrize("mask_windows", [0, 1, 2, 6])
def test_cached_attention_equals_the_formula(monkeypatch, budget: int, mask_windows: int) -> None:
    """Whatever the size of a run of windows, and where runs and samples do not end together."""
    monkeypatch.setattr(cached, "CACHED", budget)
    parts = torch.randn(3, 2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = None
    if mask_windows:
        regions = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
        mask = Mask.of(regions, torch.arange(mask_windows) % 2, -torch.inf)

    def formula(parts: Tensor, bias: Tensor) -> Tensor:
        q, k, v = parts.permute(0, 3, 1, 4, 2)
        scores = q @ k.transpose(-1, -2) / 5**0.5 + bias
        if mask is not None:
            scores = scores + mask.patterns[mask.which.repeat(6 // mask_windows)][:, None]
        return (scores.softmax(-1) @ v).permute(1, 3, 0, 2)

    weight = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    got, expected = cached.attention(parts, bias, mask), formula(parts, bias)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), (parts, bias)),
        torch.autograd.grad((expected * weight).sum(), (parts, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(cached.attention(parts, bias, mask), expected)
