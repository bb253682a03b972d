"""The meta device as a GPU whose memory is counted: what is alive, and CUDA's autocast."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BLOCK = 512  # bytes; CUDA's caching allocator rounds up to it
HALF = torch.float16


class Accounting(TorchDispatchMode):
    """Counts the bytes of all storages of a device that arise under it: `alive` now, `peak` at the
    highest.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.alive, self.peak = device, 0, 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._record(tensor.untyped_storage())
        return result

    def _record(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known or not storage.nbytes():
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


class Autocast(TorchFunctionMode):
    """What CUDA's autocast does to the functions of our networks and of nnU-Net's loss; the meta
    device has none.
    """

    LOWER = frozenset({F.linear, F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d,
                       torch.matmul, F.scaled_dot_product_attention})  # fmt: skip
    SINGLE = frozenset({F.layer_norm, F.group_norm, F.softmax, torch.softmax, F.log_softmax,
                        F.cross_entropy, Tensor.sum, torch.sum})  # fmt: skip

    def __init__(self, half: torch.dtype = HALF) -> None:
        super().__init__()
        self.half = half
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func in self.LOWER or func in self.SINGLE:
            dtype = self.half if func in self.LOWER else torch.float32
            args = tree_map(lambda x: self._cast(x, dtype), args)
            kwargs = {name: self._cast(x, dtype) for name, x in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, x: object, dtype: torch.dtype) -> object:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
            return x
        return self._cast_once(x, dtype) if x.is_leaf and x.requires_grad else x.to(dtype)

    def _cast_once(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """In a step."""
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.to(dtype)
        return self._weights[id(weight)]
