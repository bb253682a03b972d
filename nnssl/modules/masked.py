"""Shared settings of masked image modelling: masking, decoding and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from nnssl.modules.bounds import require_fraction, require_open_fraction
from nnssl.types import STRIDES, Shape

COARSE, COARSER = 8, 16  # strides behind stages 2 and 3


class BlockSides(tuple):
    """Sides of a hidden block in voxels: one for all axes, or one per axis: 16, or 16x8x8."""

    WORDS = "sides in voxels, such as 16 or 16x8x8"

    def __new__(cls, sides: str | int | Iterable[int]) -> BlockSides:
        if isinstance(sides, str):
            sides = list(map(int, sides.split("x")))
        return super().__new__(cls, (sides,) if isinstance(sides, int) else sides)

    def __str__(self) -> str:
        return "x".join(map(str, self))

    def along(self, dims: int) -> Shape:
        """The side along each of `dims` axes. Raises ValueError for another number of them."""
        if len(self) not in (1, dims):
            raise ValueError(
                f"mask_block={self} has {len(self)} sides for {dims} axes; give one side, or one "
                "per axis"
            )
        return tuple(self) * (dims if len(self) == 1 else 1)


SIXTEEN = BlockSides(16)


@dataclass(frozen=True)
class MaskedConfig:
    """Which blocks are hidden, which maps predict their voxels, and how errors are weighted."""

    mask_ratio: float = 0.6  # of the blocks that may be hidden
    # voxels (Jiang 2022, at 2 mm); nnssl_pretrain takes some 32 mm along each axis
    mask_block: BlockSides = SIXTEEN
    # hide blocks of one constant as well, as the papers do; ours: air says nothing
    mask_air: bool = False
    # what predicts voxels: linear, one layer per map, as the papers; or a decoder of the
    # fine-tuning network (light, swinunetr, nnunet), which is then pretrained as well
    decoder: str = "linear"
    # with linear, maps of this stride and above predict, each alone; the papers: 32
    decode_from: int = 8
    # errors below count by their square, in units of the input; 0: L1, as the papers
    smooth_l1: float = 0.15
    # stages before `mask_stride` see visible blocks alone, each by itself (`nnssl.encoder.visible`)
    visible_only: bool = False
    window_jitter: float = 0.5  # chance of a narrower HU window; not in the papers

    PUBLISHED: ClassVar[dict] = {
        "mask_air": True,
        "decode_from": 32,
        "smooth_l1": 0.0,
        "window_jitter": 0.0,
    }

    def __post_init__(self) -> None:
        # a file knows lists, an old one numbers
        object.__setattr__(self, "mask_block", BlockSides(self.mask_block))
        self._check_blocks()
        self._check_decode_from()
        require_open_fraction(self, "mask_ratio")
        require_fraction(self, "window_jitter")
        if not self.smooth_l1 >= 0:
            raise ValueError(f"smooth_l1 must be 0 (plain L1) or above, got {self.smooth_l1}")
        if self.visible_only:
            self._check_visible_only()

    def _check_blocks(self) -> None:
        if not 1 <= len(self.mask_block) <= 3 or not set(self.mask_block) <= set(STRIDES):
            raise ValueError(
                f"mask_block must be a stride of the encoder, {list(STRIDES)}, or one for each "
                f"axis such as 16x8x8, got {self.mask_block}"
            )

    def _check_decode_from(self) -> None:
        if self.decode_from not in STRIDES:
            raise ValueError(
                f"decode_from must be a stride of the encoder, {list(STRIDES)}, got "
                f"{self.decode_from}"
            )

    def block_sides(self, dims: int) -> Shape:
        """The side of a block along each of `dims` axes; ValueError for another number of them."""
        return self.mask_block.along(dims)

    def most_hidden(self, blocks: int) -> int:
        """How many of an image's `blocks` are hidden, where none of them is one constant."""
        return math.ceil(self.mask_ratio * blocks)

    @property
    def mask_stride(self) -> int:
        """Stride in voxels at which mask tokens enter a `visible_only` encoder: as late as the
        decoded maps allow. Stage 4 must see them: nothing else could fill them.
        """
        return min(self.decode_from, COARSER)

    def _check_visible_only(self) -> None:
        """Nothing may read the maps of the stages before: they exist at visible blocks only."""
        if self.decode_from < COARSE or self.decoder != "linear":
            raise ValueError(
                f"visible_only=true needs a decode_from of at least {COARSE}, and decoder=linear; "
                f"got decode_from={self.decode_from}, decoder={self.decoder}. To keep these "
                "settings, set visible_only=false"
            )
        self._check_visible_blocks()

    def _check_visible_blocks(self) -> None:
        """Each holds a mask token's cell."""
        if min(self.mask_block) < self.mask_stride:
            raise ValueError(
                f"visible_only=true with decode_from={self.decode_from} needs a mask_block of at "
                f"least {self.mask_stride}, got {self.mask_block}. Set mask_block="
                f"{self.mask_stride}, or visible_only=false to keep it"
            )
