"""Swin Transformer encoder in 3D and 2D, with mask tokens and stage maps.

Liu et al. 2021 (arXiv 2103.14030); in 3D as Swin UNETR (Tang 2022, arXiv 2111.14791) and SMIT
(Jiang 2022). Parameter names follow `monai.networks.nets.swin_unetr.SwinTransformer` 1.6.1, the
oracle of the tests.

    image [B C *size] -> patches -> stage 1 -> merge -> stage 2 -> merge -> ... stage 4 -> merge
    taps "stage"                          | 0              | 1                       | 3      | 4
    taps "merge"                | 0                | 1              | 2                       | 4
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder import visible
from nnssl.encoder.blocks import HALF, PatchEmbed, Stage, initialise
from nnssl.encoder.config import SwinConfig, map_channels
from nnssl.encoder.convolutions import ResidualConvolution
from nnssl.encoder.stage_inputs import stage_inputs
from nnssl.encoder.visible import Visible
from nnssl.shapes import ceil_div
from nnssl.types import STRIDES, Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

ALL = tuple(range(len(STRIDES)))  # the maps' numbers


class Swin(nn.Module):
    """The encoder. Publishes `config`, and `channels` and `strides` of its five maps.

    `strides` are in voxels, along an axis that every step halves; `config.steps` may leave others
    longer.

    maskable:      own a `mask_token` and accept `masked`. For pretraining only. It enters behind
                   the patch embedding, or behind stage 2 or 3 (`visible.mask_at_stride`).
    checkpointing: recompute each block in the backward pass: much less memory, about a third more
                   time.
    """

    def __init__(
        self, config: SwinConfig, maskable: bool = False, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        self.channels = map_channels(config.embed_dim)
        self.strides: tuple[int, ...] = STRIDES
        self.patch_embed = PatchEmbed(config)
        for number, rates in enumerate(_drop_path_rates(config)):
            self._add_stage(number, rates)
        norms = nn.ModuleList(map(nn.LayerNorm, self.channels[:4])) if config.out_norms else None
        self.out_norms = norms
        # Not zeros (SMIT): the layer norm of a zero token has a gradient 1/sqrt(eps) times too
        # large at the first step. SimMIM's 0.02
        self.mask_token = nn.Parameter(torch.randn(config.embed_dim) * 0.02) if maskable else None
        self.apply(initialise)

    def _add_stage(self, number: int, rates: list[float]) -> None:
        config, dim = self.config, self.channels[number]
        stage = Stage(dim, config.heads[number], rates, config.step(number + 1), config)
        setattr(self, f"layers{number + 1}", nn.ModuleList([stage]))
        if config.convolutions:
            branch = ResidualConvolution(dim, config.spatial_dims)
            setattr(self, f"layers{number + 1}c", nn.ModuleList([branch]))

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f"layers{i}")[0] for i in (1, 2, 3, 4)]

    def token_grid(self, spatial: Shape) -> Shape:
        """The grid on which `masked` lives: one token for 2^d voxels, fewer where the patch
        embedding is thinner.
        """
        return ceil_div(spatial, self.config.step(0))

    def copied(self, maskable: bool, wanted: Collection[int] = ALL) -> Swin:
        """A copy for a pretraining method to train and to edit; this encoder stays as it is.

        maskable: keep the mask token. A method that hides nothing must have none: DDP would wait
        for its gradient.
        wanted:   the maps that the method reads (`freeze_unread`).
        """
        encoder = copy.deepcopy(self)
        if not maskable:
            encoder.mask_token = None
        encoder.freeze_unread(wanted)
        return encoder

    def freeze_unread(self, wanted: Collection[int]) -> None:
        """Require no gradient where no map of `wanted` needs it: DDP waits for every gradient that
        is required.
        """
        last, computed = max(wanted), self._stages_for(max(wanted))
        for number, stage in enumerate(self.stages):
            if number >= computed:
                getattr(self, f"layers{number + 1}").requires_grad_(False)
                if self.config.convolutions:
                    getattr(self, f"layers{number + 1}c").requires_grad_(False)
            elif number >= last:
                stage.downsample.requires_grad_(False)
        for number, norm in enumerate(self.out_norms or ()):
            if number not in wanted:
                norm.requires_grad_(False)

    def _stages_for(self, last: int) -> int:
        """How many stages compute the maps up to number `last`."""
        return min(last + (self.config.taps == "stage"), len(self.stages))

    def forward(
        self,
        x: Float[Tensor, "batch channels *size"],
        masked: Bool[Tensor, "batch *grid"] | Visible | None = None,
        wanted: Collection[int] = ALL,
    ) -> list[Float[Tensor, "batch _ *_"] | None]:
        """Encode an image.

        x:      [B C *spatial], any size.
        masked: Bool [B *token_grid(spatial)], True = hidden: the token is replaced by the mask
        token. Or `Visible`: the blocks that the stages before the mask token compute; their maps
        are then None.
        wanted: the numbers of the maps that are read; the others are None, and what lies behind the
        last one is not computed.
        Returns five maps [B channels[i] *ceil(spatial / strides[i])], each layer-normalised,
        without affine but for `config.out_norms`; along an axis of other `config.steps` the divisor
        is their product so far. Raises ValueError for a wrong number of axes or channels, or a mask
        of another shape.

        Where its weights are in half precision (`nnssl.train.precision`), so is all between, and so
        are the maps; else autocast decides.
        """
        self._check(x, masked)
        kind = self.patch_embed.proj.weight.dtype
        if kind in HALF:
            with torch.autocast(x.device.type, enabled=False):
                return self._maps(x, masked, wanted)
        return self._maps(x, masked, wanted)

    def _maps(
        self, x: Tensor, masked: Tensor | Visible | None, wanted: Collection[int]
    ) -> list[Tensor | None]:
        if isinstance(masked, Visible):
            tokens, first = visible.coarse_tokens(self, x, masked), visible.stages_before(self)
        else:
            tokens, first = self._tokens(x, masked), 0
        return self._stage_maps(tokens, first, wanted)

    def _tokens(self, x: Tensor, masked: Tensor | None) -> Tensor:
        """[B C *spatial] to [B *grid E], hidden ones replaced by the mask token."""
        tokens = self.patch_embed(x)
        if masked is None or self.mask_token is None:
            return tokens
        return torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)

    def _stage_maps(
        self, tokens: Tensor, first: int, wanted: Collection[int]
    ) -> list[Tensor | None]:
        """The maps behind `tokens`, which stage `first` takes."""
        maps: list[Tensor | None] = [None] * len(STRIDES)

        def keep(number: int, tokens: Tensor, norm: nn.Module | None = None) -> None:
            # Normalised where it arises: its fraction of the backward pass then comes late, when
            # most memory is free again.
            if number in wanted:
                maps[number] = _as_map(tokens, norm)

        by_merge, last = self.config.taps == "merge", max(wanted)
        if by_merge:
            keep(0, tokens)
        stages = self.stages[first : self._stages_for(last)]
        inputs = stage_inputs(stages, tokens)
        for number, (stage, own) in enumerate(zip(stages, inputs, strict=True), first):
            tokens = stage(self._convolved(tokens, number), own, self.checkpointing)
            if not by_merge:
                keep(number, tokens, self.out_norms[number] if self.out_norms else None)
            if by_merge or number < last:
                tokens = stage.downsample(tokens)
            if by_merge:
                keep(number + 1, tokens)
        if not by_merge and last == len(self.stages):
            keep(last, tokens)
        return maps

    def _convolved(self, tokens: Tensor, number: int) -> Tensor:
        """What stage `number` takes."""
        if not self.config.convolutions:
            return tokens
        return getattr(self, f"layers{number + 1}c")[0](tokens)

    def _check(self, x: Tensor, masked: Tensor | Visible | None) -> None:
        self._check_image(x)
        if isinstance(masked, Visible):
            visible.require_blocks_fit(self, x, masked)
        elif masked is not None:
            self._check_mask(x, masked)

    def _check_image(self, x: Tensor) -> None:
        config = self.config
        axes = "Z Y X" if config.spatial_dims == 3 else "Y X"
        if x.ndim != config.spatial_dims + 2 or x.shape[1] != config.in_channels:
            raise ValueError(
                f"the encoder takes [B {config.in_channels} {axes}], got {tuple(x.shape)}"
            )

    def _check_mask_token(self) -> None:
        """That it enters behind the patch embedding."""
        if self.mask_token is None:
            raise ValueError(
                "this encoder has no mask token; build it with Swin(config, maskable=True)"
            )
        if stages := visible.stages_before(self):
            raise ValueError(
                f"this encoder's mask token enters at stride {self.strides[stages]}; give it "
                "Visible blocks"
            )

    def _check_mask(self, x: Tensor, masked: Tensor) -> None:
        self._check_mask_token()
        wanted = (x.shape[0], *self.token_grid(tuple(x.shape[2:])))
        if tuple(masked.shape) != wanted or masked.dtype != torch.bool:
            raise ValueError(
                f"masked must be bool on the token grid {wanted}, got {masked.dtype} "
                f"{tuple(masked.shape)}"
            )


def _drop_path_rates(config: SwinConfig) -> list[list[float]]:
    """By stage and block: from 0 up to `config.drop_path`, linear over all blocks."""
    count = sum(config.depths)
    rates = (config.drop_path * i / max(1, count - 1) for i in range(count))
    return [list(islice(rates, depth)) for depth in config.depths]


def _as_map(tokens: Tensor, norm: nn.Module | None = None) -> Tensor:
    """[B *grid C] to a normalised [B C *grid]."""
    normalised = F.layer_norm(tokens, tokens.shape[-1:]) if norm is None else norm(tokens)
    return normalised.movedim(-1, 1)
