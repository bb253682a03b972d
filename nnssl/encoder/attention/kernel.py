"""The Triton kernels of window attention: one forward, one backward. Nothing else is in here.

A program holds one head's bias in registers and walks over windows: scores, softmax and product
with v of a window never leave the chip. The backward kernel computes the probabilities again, so
that only q, k and v are kept, and sums its windows' gradients of the bias in registers: one partial
sum a program, no atomics, so the result is the same in every run on the same kind of GPU.

Written in the terms of `launch`: N slots per window, H heads of D channels; BN and BD are N and D
padded to powers of two of at least 16, which is what tensor cores take. A slot beyond N is attended
to by none and adds nothing. Products of fp32 are exact ("ieee"), as PyTorch's are by default; those
of half precision add up in fp32.
"""

# ruff: noqa: N803 - pointers and constants in capitals, as in Triton's own kernels

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _probabilities(
    q, k, bias, WHICH, REGIONS, window, per_sample, scale, hidden, slot,
    N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """softmax(q k^T * scale + bias + mask) of one window and head, [BN BN] in fp32."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
    if MASKED:
        pattern = tl.load(WHICH + window % per_sample)
        region = tl.load(REGIONS + pattern * N + slot, mask=slot < N, other=-1)
        masked = (region[:, None] != region[None, :]) & (slot[:, None] < N)
        scores = tl.where(masked, scores + hidden, scores)
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]


@triton.jit
def _bias(BIAS, head, slot, N: tl.constexpr):
    """The bias of one head, [BN BN]; minus infinity for keys that are none."""
    square = (slot[:, None] < N) & (slot[None, :] < N)
    bias = tl.load(BIAS + head * N * N + slot[:, None] * N + slot[None, :], mask=square, other=0.0)
    return tl.where(slot[None, :] < N, bias, float("-inf"))


@triton.jit(do_not_specialize=["windows", "per_sample"])
def forward(
    QKV, BIAS, WHICH, REGIONS, OUT, windows, per_sample, scale, hidden,
    N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """OUT [windows N H D] from QKV [windows N 3 H D] and BIAS [H N N] in fp32."""
    # neighbours work on the same windows, whose heads lie side by side in memory
    head = tl.program_id(0)
    slot, channel = tl.arange(0, BN), tl.arange(0, BD)
    valid = (slot[:, None] < N) & (channel[None, :] < D)
    bias = _bias(BIAS, head, slot, N)
    for window in range(tl.program_id(1), windows, tl.num_programs(1)):
        token = tl.cast(window, tl.int64) * N + slot[:, None]
        at = token * (3 * H * D) + head * D + channel[None, :]
        q = tl.load(QKV + at, mask=valid, other=0.0)
        k = tl.load(QKV + at + H * D, mask=valid, other=0.0)
        v = tl.load(QKV + at + 2 * H * D, mask=valid, other=0.0)
        p = _probabilities(
            q, k, bias, WHICH, REGIONS, window, per_sample, scale, hidden, slot, N, MASKED
        )
        out = tl.dot(p.to(v.dtype), v, input_precision="ieee")
        to = token * (H * D) + head * D + channel[None, :]
        tl.store(OUT + to, out.to(OUT.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["windows", "per_sample", "rows"])
def backward(
    QKV, BIAS, WHICH, REGIONS, DOUT, DQKV, PARTS, SUMS, rows, windows, per_sample, scale, hidden,
    N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    MASKED: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """DQKV as QKV, and PARTS [programs H N N] in fp32, whose sum is the bias' gradient, from DOUT
    as OUT. If SUMMED, SUMS [rows 3 H D] in fp32, whose sum is that of DQKV over windows and slots;
    there are at least as many rows as programs.
    """
    head = tl.program_id(0)
    slot, channel = tl.arange(0, BN), tl.arange(0, BD)
    valid = (slot[:, None] < N) & (channel[None, :] < D)
    bias = _bias(BIAS, head, slot, N)
    total = tl.zeros([BN, BN], tl.float32)
    of_q = tl.zeros([BD], tl.float32)
    of_k = tl.zeros([BD], tl.float32)
    of_v = tl.zeros([BD], tl.float32)
    for window in range(tl.program_id(1), windows, tl.num_programs(1)):
        token = tl.cast(window, tl.int64) * N + slot[:, None]
        at = token * (3 * H * D) + head * D + channel[None, :]
        q = tl.load(QKV + at, mask=valid, other=0.0)
        k = tl.load(QKV + at + H * D, mask=valid, other=0.0)
        v = tl.load(QKV + at + 2 * H * D, mask=valid, other=0.0)
        dout = tl.load(DOUT + token * (H * D) + head * D + channel[None, :], mask=valid, other=0.0)
        p = _probabilities(
            q, k, bias, WHICH, REGIONS, window, per_sample, scale, hidden, slot, N, MASKED
        )
        dv = tl.dot(tl.trans(p.to(dout.dtype)), dout, input_precision="ieee")
        tl.store(DQKV + at + 2 * H * D, dv.to(DQKV.dtype.element_ty), mask=valid)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        dscores = p * (dp - tl.sum(p * dp, 1)[:, None])
        total += dscores
        low = dscores.to(q.dtype)
        dq = tl.dot(low, k, input_precision="ieee") * scale
        tl.store(DQKV + at, dq.to(DQKV.dtype.element_ty), mask=valid)
        dk = tl.dot(tl.trans(low), q, input_precision="ieee") * scale
        tl.store(DQKV + at + H * D, dk.to(DQKV.dtype.element_ty), mask=valid)
        if SUMMED:
            of_q += tl.sum(dq, 0)
            of_k += tl.sum(dk, 0)
            of_v += tl.sum(dv, 0)
    if SUMMED:
        for row in range(tl.program_id(1), rows, tl.num_programs(1)):
            to = SUMS + row * (3 * H * D) + head * D + channel
            tl.store(to, of_q, mask=channel < D)
            tl.store(to + H * D, of_k, mask=channel < D)
            tl.store(to + 2 * H * D, of_v, mask=channel < D)
            of_q = tl.zeros([BD], tl.float32)  # the other rows are zeros
            of_k = tl.zeros([BD], tl.float32)
            of_v = tl.zeros([BD], tl.float32)
    square = (slot[:, None] < N) & (slot[None, :] < N)
    part = (tl.program_id(1) * H + head) * N * N
    tl.store(PARTS + part + slot[:, None] * N + slot[None, :], total, mask=square)
