"""A CUDA graph for CPUs: the operations of a step, recorded with their tensors and played again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


def _tensors(*trees) -> list[Tensor]:
    return [x for x in tree_leaves(trees) if isinstance(x, Tensor)]


def _as_now(tree):
    """The tensors in their present shape, whatever becomes of theirs."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def _place(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class Tape(TorchDispatchMode):
    """Keeps every operation with the tensors and numbers that it was given, as a graph does.

    `play` gives each the same once more and puts its results where they were put: what a step takes
    from elsewhere in the meantime, or from the host, is not seen. What asks for a value fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self._made: set[int] = set()  # storages of tensors that were made here
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # of others that were written to

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select"):
            raise RuntimeError(f"{name} asks for a value")
        given = _tensors(args, kwargs)
        writes = function._schema.is_mutable
        if writes:
            for x in given:
                self._remember(x)
        now = _as_now((args, kwargs))
        result = function(*args, **kwargs)
        addresses = {_place(x) for x in given}
        fresh = [x for x in _tensors(result) if _place(x) not in addresses]
        self._made |= {_place(x) for x in fresh}
        if writes or (fresh and not name.startswith(("empty", "new_empty"))):
            self.operations.append((function, *now, _as_now(result), bool(fresh)))
        return result

    def _remember(self, x: Tensor) -> None:
        """A graph does nothing while it is captured: what was there before is put back."""
        if _place(x) not in self._made and _place(x) not in self._before:
            whole = x.detach().as_strided(
                (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0
            )
            self._before[_place(x)] = whole, whole.clone()

    def undo(self) -> None:
        with torch.no_grad():
            for x, before in self._before.values():
                x.copy_(before)

    def play(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, result, fresh in self.operations:
                again = function(*args, **kwargs)
                if fresh:
                    for target, value in zip(_tensors(result), _tensors(again), strict=True):
                        target.copy_(value)


def capture(function: Callable[[], tuple]) -> tuple[tuple, Callable[[], None]]:
    """As `nnssl.train.graph.cuda_capture`, on a CPU."""
    tape = Tape()
    with tape:
        result = function()
    tape.undo()
    return result, tape.play
