"""The Triton kernels of the residual stream. Nothing else is in here.

A program walks over tiles of BR rows of C channels. Forward, it adds a branch to the stream, puts
the sum into another order and normalises it. Backward, it does the three the other way round and
sums, in registers, the gradients of the norm's scale and offset and of the bias that the branch
ended with: one partial sum a program, no atomics, so the result is the same in every run on the
same kind of GPU. All is computed in fp32; sums are rounded as they are stored.
"""

# ruff: noqa: N803 - pointers and constants in capitals, as in Triton's own kernels

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_rows(
    ORDER, first, tokens, rows, BR: tl.constexpr, MOVES: tl.constexpr
):  # fmt: skip
    """Rows of a tile, which of them are real, their sample, and the rows that they come from."""
    row = first + tl.arange(0, BR)
    inside = row < rows
    sample = row // tokens
    source = row
    if MOVES:
        source = sample * tokens + tl.load(ORDER + row % tokens, mask=inside, other=0)
    return row, inside, sample, tl.cast(source, tl.int64)


@triton.jit(do_not_specialize=["tokens", "rows"])
def forward(
    X, BRANCH, KEPT, ORDER, SCALE, OFFSET, SUM, OUT, MEAN, RSTD, tokens, rows, eps,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    ADDS: tl.constexpr, DROPS: tl.constexpr, MOVES: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """SUM [rows C] is X + BRANCH * KEPT in another order; OUT its layer norm, of MEAN and RSTD
    [rows].
    """
    channel = tl.arange(0, BC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row, inside, sample, source = _tile_rows(ORDER, tile * BR, tokens, rows, BR, MOVES)
        valid = inside[:, None] & (channel[None, :] < C)
        at = source[:, None] * C + channel[None, :]
        to = tl.cast(row, tl.int64)[:, None] * C + channel[None, :]
        x = tl.load(X + at, mask=valid, other=0.0).to(tl.float32)
        if ADDS:
            branch = tl.load(BRANCH + at, mask=valid, other=0.0).to(tl.float32)
            if DROPS:
                kept = tl.load(KEPT + sample, mask=inside, other=0.0).to(tl.float32)
                branch = branch * kept[:, None]
            x = (x + branch).to(SUM.dtype.element_ty).to(tl.float32)
        tl.store(SUM + to, x.to(SUM.dtype.element_ty), mask=valid)
        if NORMS:
            mean = tl.sum(x, 1) / C
            centred = tl.where(valid, x - mean[:, None], 0.0)
            rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
            scale = tl.load(SCALE + channel, mask=channel < C, other=0.0).to(tl.float32)
            offset = tl.load(OFFSET + channel, mask=channel < C, other=0.0).to(tl.float32)
            out = centred * rstd[:, None] * scale[None, :] + offset[None, :]
            tl.store(OUT + to, out.to(OUT.dtype.element_ty), mask=valid)
            tl.store(MEAN + row, mean, mask=inside)
            tl.store(RSTD + row, rstd, mask=inside)


@triton.jit(do_not_specialize=["tokens", "rows"])
def backward(
    SUM, MEAN, RSTD, SCALE, KEPT, ORDER, DSUM, DOUT, DX, DBRANCH, PARTS, tokens, rows,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    ADDS: tl.constexpr, DROPS: tl.constexpr, MOVES: tl.constexpr, NORMS: tl.constexpr,
    FLOWS: tl.constexpr,
):  # fmt: skip
    """DX and, if it differs, DBRANCH from DSUM (if FLOWS) and DOUT; PARTS [programs 3 C] in fp32,
    whose sums are the gradients of scale, offset and the branch's bias.
    """
    channel = tl.arange(0, BC)
    of_scale = tl.zeros([BC], tl.float32)
    of_offset = tl.zeros([BC], tl.float32)
    of_branch = tl.zeros([BC], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row, inside, sample, source = _tile_rows(ORDER, tile * BR, tokens, rows, BR, MOVES)
        valid = inside[:, None] & (channel[None, :] < C)
        at = source[:, None] * C + channel[None, :]
        to = tl.cast(row, tl.int64)[:, None] * C + channel[None, :]
        total = tl.zeros([BR, BC], tl.float32)
        if FLOWS:
            total = tl.load(DSUM + to, mask=valid, other=0.0).to(tl.float32)
        if NORMS:
            x = tl.load(SUM + to, mask=valid, other=0.0).to(tl.float32)
            mean = tl.load(MEAN + row, mask=inside, other=0.0)
            rstd = tl.load(RSTD + row, mask=inside, other=0.0)
            scale = tl.load(SCALE + channel, mask=channel < C, other=0.0).to(tl.float32)
            normed = tl.where(valid, (x - mean[:, None]) * rstd[:, None], 0.0)
            dout = tl.load(DOUT + to, mask=valid, other=0.0).to(tl.float32)
            of_scale += tl.sum(dout * normed, 0)
            of_offset += tl.sum(dout, 0)
            dnormed = dout * scale[None, :]
            along = tl.sum(dnormed * normed, 1) / C
            unscaled = dnormed - (tl.sum(dnormed, 1) / C)[:, None] - normed * along[:, None]
            total += tl.where(valid, unscaled * rstd[:, None], 0.0)
        tl.store(DX + at, total.to(DX.dtype.element_ty), mask=valid)
        if ADDS:
            if DROPS:
                kept = tl.load(KEPT + sample, mask=inside, other=0.0).to(tl.float32)
                total = total * kept[:, None]
                tl.store(DBRANCH + at, total.to(DBRANCH.dtype.element_ty), mask=valid)
            of_branch += tl.sum(total, 0)
    part = PARTS + tl.program_id(0) * 3 * C + channel
    tl.store(part, of_scale, mask=channel < C)
    tl.store(part + C, of_offset, mask=channel < C)
    tl.store(part + 2 * C, of_branch, mask=channel < C)


@triton.jit(do_not_specialize=["rows"])
def gelu_backward(
    X, DOUT, DX, PARTS, rows, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr
):  # fmt: skip
    """DX of GELU at X [rows C] from DOUT; PARTS [programs C] in fp32, sums of DX over rows."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = tile * BR + tl.arange(0, BR)
        valid = (row[:, None] < rows) & (channel[None, :] < C)
        at = tl.cast(row, tl.int64)[:, None] * C + channel[None, :]
        x = tl.load(X + at, mask=valid, other=0.0).to(tl.float32)
        dout = tl.load(DOUT + at, mask=valid, other=0.0).to(tl.float32)
        below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        dx = dout * (below + x * density)
        tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=valid)
        total += tl.sum(dx, 0)
    tl.store(PARTS + tl.program_id(0) * C + channel, total, mask=channel < C)
