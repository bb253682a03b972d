"""Running statistics that several processes, and several parts of one batch, share exactly."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl import dist
from nnssl.cpu.products import in_fp32

if TYPE_CHECKING:
    from jaxtyping import Float


class Stepped(nn.Module):
    """State that moves once per step, unless the step does not count.

    step_counts: a bool scalar on the device, set by `decide` during `Method.after_step`.
            Whether a gradient was finite is known there first, and reading it would make the host
            wait; None: the step counts.
    """

    step_counts: Tensor | None = None


def decide(module: nn.Module, step_counts: Tensor | None) -> None:
    """Tell all `Stepped` inside `module` whether the step that ends now counts."""
    for part in module.modules():
        if isinstance(part, Stepped):
            part.step_counts = step_counts


class Running(Stepped):
    """What remembers every batch of a step (`accumulate`) and moves once the optimiser has
    (`update_all`).

    Between two updates nothing changes, so every micro-batch of a step and every process sees the
    same. All state is in buffers, so that a resumed run continues exactly.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: list = []

    def update(self) -> None:
        """Move to what was accumulated. Means have none: `update_all` moves them together."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forget what was accumulated since the last update, as of a trial or a picture."""
        self._pending.clear()


class RunningMean(Running):
    """A running mean of rows. Each row of a step weighs the same, whichever process or part of the
    batch it is of.

    With `plain_start`, the first updates are plain averages, so that the mean is right at once
    instead of after 1 / (1 - momentum) steps.
    """

    value: Tensor
    updates: Tensor

    def __init__(
        self, size: int, momentum: float, plain_start: bool = False, start: Tensor | None = None
    ) -> None:
        super().__init__()
        self.momentum, self.plain_start = momentum, plain_start
        self.register_buffer("value", torch.zeros(size) if start is None else start)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def accumulate(
        self, rows: Float[Tensor, "rows size"], counts: Float[Tensor, " rows"] | None = None
    ) -> None:
        """`rows` [N size]; N may be 0 and may differ between processes. `counts` [N]: 1 for a row
        that counts, 0 for one that does not; None: all of them do.
        """
        rows = rows.detach().float()
        number = _row_count(len(rows), rows.device) if counts is None else counts.sum(0, True)
        self._pending.append(torch.cat([_weighted_sum(rows, counts), number]))

    def accumulate_sum(self, total: Tensor) -> None:
        """[size + 1]: the sum of rows, and behind it their number."""
        self._pending.append(total)


def _weighted_sum(rows: Tensor, counts: Tensor | None) -> Tensor:
    """[N size] to [size]."""
    if counts is None:
        return rows.sum(dim=0)
    with in_fp32(rows.device):
        return torch.mv(rows.t(), counts)


@lru_cache(maxsize=64)
def _row_count(rows: int, device: torch.device) -> Tensor:
    """[1], which holds it."""
    with torch.inference_mode(False):
        return torch.full((1,), float(rows), device=device)


@lru_cache(maxsize=64)
def _ones(rows: int, device: torch.device) -> Tensor:
    """[rows 1]."""
    with torch.inference_mode(False):
        return torch.ones(rows, 1, device=device)


def _total(pending: list[Tensor]) -> Tensor:
    return pending[0] if len(pending) == 1 else torch.stack(pending).sum(dim=0)


class _Layout(NamedTuple):
    """Where the means lie in the vector of all sums, each with its number of rows behind it.

    means: [S] the mean that each entry is of; last: [S] the index of that mean's number of rows.
    slowest: [M] each mean's own fraction of a step; plain_start: [M] 1 where the first steps count
    more.
    """

    means: Tensor
    last: Tensor
    slowest: Tensor
    plain_start: Tensor


@lru_cache(maxsize=64)
def _layout(kinds: tuple[tuple[int, float, bool], ...], device: torch.device) -> _Layout:
    """The layout of means by (size, momentum, plain_start) of each."""
    with torch.inference_mode(False):
        sizes = torch.tensor([size + 1 for size, _, _ in kinds])
        means = torch.arange(len(kinds)).repeat_interleave(sizes)
        last = (sizes.cumsum(0) - 1)[means]
        slowest = torch.tensor([1 - momentum for _, momentum, _ in kinds])
        plain_start = torch.tensor([float(plain_start) for _, _, plain_start in kinds])
        return _Layout(*(part.to(device) for part in (means, last, slowest, plain_start)))


def _take(parts: list[RunningMean], totals: Tensor) -> None:
    """Move each to the mean of a step's rows: of each their sum, and behind it their number.

    All at once: there are many and they are small.
    """
    kinds = tuple((len(part.value), part.momentum, part.plain_start) for part in parts)
    layout = _layout(kinds, totals.device)
    new = totals / totals[layout.last]
    good = _finite(new, layout)
    if parts[0].step_counts is not None:
        good = good & parts[0].step_counts
    updates = torch.stack([part.updates for part in parts])
    weight = torch.maximum(layout.slowest, layout.plain_start / (updates + 1))
    old = torch.cat([x for part in parts for x in (part.value, part.value[:1])])
    new = torch.where(good[layout.means], old.lerp(new, weight[layout.means]), old)
    values = [part[:-1] for part in new.split([size + 1 for size, _, _ in kinds])]
    torch._foreach_copy_([part.value for part in parts], values)
    torch._foreach_copy_([part.updates for part in parts], list((updates + good).unbind()))


def _finite(new: Tensor, layout: _Layout) -> Tensor:
    """Bool [M]: the means with rows that did not overflow; others would poison all later ones."""
    faults = new.new_zeros(len(layout.slowest)).index_add_(0, layout.means, new - new)
    return faults == 0  # a difference is 0, or not a number


@torch.no_grad()
def update_all(module: nn.Module) -> None:
    """Move every running state inside `module`; once per optimiser step. All means share one
    message to the others.
    """
    parts = [part for part in module.modules() if isinstance(part, Running)]
    means = [part for part in parts if isinstance(part, RunningMean) and part._pending]
    if means:
        totals = torch.cat([_total(part._pending) for part in means])
        for part in means:
            part.discard()
        _take(means, dist.all_reduce_mean(totals))
    for part in parts:
        if not isinstance(part, RunningMean):
            part.update()


def discard_all(module: nn.Module) -> None:
    """Forget what every running state inside `module` has accumulated since the last step."""
    for part in module.modules():
        if isinstance(part, Running):
            part.discard()


class Standardise(nn.Module):
    """(x - mean) / std by running moments of what went through in earlier steps: [N d] -> [N d].

    Pooled tokens of different crops share most of their length, so cosine similarities to
    prototypes hardly differ, and a small batch ends in uniform targets at once. Batch norm would
    prevent that too (DINO's `use_bn_in_head`), but not with the few scans that a 3D batch has.
    """

    def __init__(self, size: int, momentum: float = 0.9, eps: float = 1e-4) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.moments = RunningMean(
            2 * size,
            momentum,
            plain_start=True,
            start=torch.cat([torch.zeros(size), torch.ones(size)]),
        )

    def forward(
        self, x: Float[Tensor, "rows dim"], counts: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows dim"]:
        """Rows [N d]; `counts` as in `RunningMean.accumulate`. In fp32, even under autocast."""
        x = x.float()
        with torch.no_grad():  # the ones give the number of rows
            rows = torch.cat([x, x * x, _ones(len(x), x.device)], dim=-1)
            self.moments.accumulate_sum(_weighted_sum(rows, counts))
        mean, square = self.moments.value.split(self.size)
        variance = torch.addcmul(square, mean, mean, value=-1).clamp(min=0)
        return F.batch_norm(x, mean, variance, eps=self.eps)
