"""The encoder interface that heads and decoders need, for this package's encoder or another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from torch import Tensor, nn


class Dims(Protocol):
    @property
    def spatial_dims(self) -> int: ...


class StageLike(Protocol):
    """Blocks, and the merge behind them."""

    @property
    def blocks(self) -> nn.Module: ...

    @property
    def downsample(self) -> nn.Module: ...


class EncoderLike(Protocol):
    """Publishes channels and strides of its five maps, as `nnssl.encoder.swin.Swin` does."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def config(self) -> Dims: ...

    @property
    def stages(self) -> Sequence[StageLike]: ...

    def __call__(
        self, x: Tensor, masked: object = None, wanted: Collection[int] = ...
    ) -> list[Tensor]: ...


EncoderT = TypeVar("EncoderT", bound=EncoderLike)
