"""Distributed helpers; no-ops in a single process."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as td
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.types import GradContext

_alone = False


def is_initialized() -> bool:
    return not _alone and td.is_available() and td.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process behaves as the only one: it does what the others may leave out."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    return td.get_rank() if is_initialized() else 0


def world_size() -> int:
    return td.get_world_size() if is_initialized() else 1


def local_world_size() -> int:
    """Processes on this machine, as torchrun says; of several machines each has its own cores and
    memory.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over all processes, without gradient; `tensor` itself in one process."""
    if not is_initialized():
        return tensor
    tensor = tensor.detach().clone()
    td.all_reduce(tensor)
    return tensor / world_size()


def all_reduce_min(number: int, device: torch.device) -> int:
    """The smallest of all processes' numbers."""
    if not is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    td.all_reduce(tensor, op=td.ReduceOp.MIN)
    return int(tensor)


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate [N ...] of every process in rank order to [W*N ...], without gradient."""
    if not is_initialized():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    td.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _GatherContext(GradContext, Protocol):
    own: slice


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _GatherContext, tensor: torch.Tensor) -> torch.Tensor:
        ctx.own = slice(rank() * len(tensor), (rank() + 1) * len(tensor))
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: _GatherContext, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        td.all_reduce(gradient)
        return gradient[ctx.own]


def all_gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """`all_gather`, through which every process's loss also reaches the rows that others have sent.

    The gradient of a row is the sum over the processes' losses. Where each of them is the mean over
    its own rows, DistributedDataParallel's average of the parameters' gradients is that of the mean
    over all rows.
    """
    return _Gather.apply(tensor) if is_initialized() else tensor


def barrier() -> None:
    if is_initialized():
        td.barrier()


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` for the training in several processes, which average its gradients; itself in one.

    Its buffers are not sent at each step: every process moves them alike.
    """
    if not is_initialized():
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    # newer versions of PyTorch warn of the former name
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    unsent: dict = {name: False}
    return DistributedDataParallel(module, **unsent)
