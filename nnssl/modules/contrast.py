"""Contrastive losses: identify the embedding of another view of the same crop. In fp32, even under
autocast.

Rows are queries, columns what they are compared with: the embeddings of all processes and those of
a queue. A column of the same scan that is not the positive may show the same anatomy; it is no
negative and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl import dist
from nnssl.cpu.products import in_fp32
from nnssl.modules.running import Running

if TYPE_CHECKING:
    from jaxtyping import Float, Int

EMPTY = -1  # the scan of a slot of the queue that was never written


class Queue(Running):
    """The last `size` embeddings of earlier steps, as further negatives: small batches have few of
    their own.

    He 2020 (MoCo, arXiv 1911.05722), section 3.1, for keys of a momentum encoder; Wang 2020
    (cross-batch memory, arXiv 1912.06798) for embeddings of the network itself. Written once per
    optimiser step, in the order of the samples, whichever process or part of the batch they came
    from.
    """

    keys: Tensor
    scans: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("scans", torch.full((size,), EMPTY, dtype=torch.long))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def accumulate(
        self, keys: Float[Tensor, "batch views dim"], scans: Int[Tensor, " batch"]
    ) -> None:
        """`keys` [B views d], any length; `scans` [B]. Every part of a step has the same size."""
        keys = F.normalize(keys.detach().float(), dim=-1)
        self._pending.append((keys, scans[:, None].expand(keys.shape[:2])))

    @torch.no_grad()
    def update(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        keys, scans = (_in_order(torch.stack(parts)) for parts in zip(*pending, strict=True))
        # a batch that overflowed must not stay for the whole length of the queue
        good = keys.isfinite().all()
        if self.step_counts is not None:
            good = good & self.step_counts
        keys, scans = keys[-len(self.keys) :], scans[-len(self.keys) :]
        slots = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[slots] = torch.where(good, keys, self.keys[slots])
        self.scans[slots] = torch.where(good, scans, self.scans[slots])
        self.position.add_(good * len(keys)).remainder_(len(self.keys))


def nt_xent(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    temperature: float,
    scans: Int[Tensor, " batch"] | None = None,
    queue: Queue | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Which of all embeddings is my other view? `first`, `second` [B d], any length -> loss,
    accuracy.

    Chen 2020 (SimCLR), eq. 1: -log exp(s_ij / t) / sum_{k != i} exp(s_ik / t) over cosines s, the
    mean over both directions. `scans` [B] decides which columns are left out; without it, only i
    itself is. The `queue` adds columns.
    Accuracy: the fraction of rows whose positive is above every negative; 0 where there is none.
    """
    rows = F.normalize(torch.cat([first, second]).float(), dim=-1)
    scans = _unlike(first) if scans is None else scans
    positive = torch.arange(len(rows), device=rows.device).roll(len(first))
    return _contrast(rows, rows, positive, torch.cat([scans, scans]), temperature, queue)


def info_nce(
    query: Float[Tensor, "batch dim"],
    key: Float[Tensor, "batch dim"],
    temperature: float,
    scans: Int[Tensor, " batch"] | None = None,
    queue: Queue | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Which of all keys is mine? `query`, `key` [B d], any length; row i belongs to row i -> loss,
    accuracy.

    van den Oord 2018 (CPC), eq. 4; He 2020 (MoCo), eq. 1, on cosines. `scans`, `queue`, accuracy:
    as in `nt_xent`.
    """
    rows, columns = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
    scans = _unlike(query) if scans is None else scans
    return _contrast(
        rows, columns, torch.arange(len(rows), device=rows.device), scans, temperature, queue
    )


def negative_cosine(
    query: Float[Tensor, "batch dim"], key: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """-cos between rows of `query` and `key` [B d], mean over rows.

    Grill 2020, eq. 2, is 2 + 2 times it.
    """
    return -F.cosine_similarity(query.float(), key.float(), dim=-1).mean()


def _contrast(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor,
    scans: Tensor,
    temperature: float,
    queue: Queue | None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of this process's `rows` [N d] over the `columns` [N d] of all processes and
    the queue.

    `positive` [N]: which of its own process's columns is right; `scans` [N]: of rows and columns
    alike.
    """
    with in_fp32(rows.device):
        columns, others = dist.all_gather_with_gradient(columns), dist.all_gather(scans)
        if queue is not None:
            columns, others = torch.cat([columns, queue.keys]), torch.cat([others, queue.scans])
        positive = positive + dist.rank() * len(rows)
        negative = (others != scans[:, None]) & (others != EMPTY)
        logits = rows @ columns.T / temperature
        right = logits.gather(1, positive[:, None])
        wrong = logits.masked_fill(~negative, -torch.inf)
        loss = (torch.cat([right, wrong], dim=1).logsumexp(dim=1, keepdim=True) - right).mean()
        best = wrong.detach().amax(dim=1, keepdim=True)
        accuracy = ((right.detach() > best) & best.isfinite()).float().mean()
    return loss, accuracy


def _unlike(rows: Tensor) -> Tensor:
    """Numbers [B] of scans that all differ, over processes as well, and are not in any queue."""
    first = EMPTY - 1 - dist.rank() * len(rows)
    return first - torch.arange(len(rows), device=rows.device)


def _in_order(parts: Tensor) -> Tensor:
    """What each process accumulated, [parts B views ...], as rows [parts * processes * B * views
    ...], samples in order.
    """
    every = dist.all_gather(parts[None])  # [processes parts B views ...]
    return every.transpose(0, 1).flatten(0, 3)
