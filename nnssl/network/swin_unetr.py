"""The segmentation network: a Swin encoder and a CNN decoder with skips, in 2D and 3D, for any
patch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from nnssl.encoder.config import PATCH, SwinConfig
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.network.decoders import OUTPUTS, make_decoder, named
from nnssl.network.layers import by_channel
from nnssl.shapes import ceil_div
from nnssl.types import Shape


class SwinUNETR(nn.Module):
    """`encoder.` and `decoder.` are the only names at the top of its state_dict.

    input_channels:   channels of the image, in nnU-Net's normalisation.
    num_classes:      channels of the logits.
    deep_supervision: give a list of logits, of the image's size and after each of the first three
                      of the encoder's steps (1/2, 1/4 and 1/8 of it, where all halve). May be
                      switched later by `network.decoder.deep_supervision`; the state_dict is the
                      same.
    encoder:          `SwinConfig.to_dict()`; its `in_channels` is replaced by `input_channels`.
                      None: preset smit.
    decoder:          {"name": "swinunetr" | "light", ...options of that decoder}, or the name
                      alone.
    intensity:        {"scale", "shift", "low", "high", "bends"}, one entry per channel each
                      (`Intensity`): from nnU-Net's values to those of the pretraining
                      (`nnssl.finetune.architecture.intensity_map`), for the encoder. Channels
                      without an entry, such as a cascade's previous segmentation, pass as they are.
    image_skip:       what the decoder's skip of the image sees: "raw", nnU-Net's own values, which
                      lose nothing to the pretraining's clipping; or "mapped", the encoder's, as in
                      plans from before this key.
    axes:             nnU-Net's `transpose_forward`: which of the file's axes each axis of the image
                      is. nnU-Net puts the axis of the widest spacing first; the network permutes
                      the image to (z, y, x) as read, on which the encoder was pretrained, and its
                      logits to the order of the plans. None: (z, y, x).
    checkpointing:    recompute the encoder's blocks in the backward pass: less memory, more time.

    Raises ValueError for an unknown decoder, option or image_skip.
    """

    # Where upstream nnU-Net's own loader of pretrained weights looks (its nnssl integration).
    key_to_encoder = "encoder"
    key_to_stem = "encoder.patch_embed"
    keys_to_in_proj = ("encoder.patch_embed.proj",)
    key_to_lpe = None

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        encoder: dict | None = None,
        decoder: str | dict = "swinunetr",
        intensity: dict | None = None,
        image_skip: str = "mapped",
        axes: list[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = SwinConfig.from_dict(encoder) if encoder else preset("smit")
        config = replace(config, in_channels=input_channels)
        self.to_plans_axes = _to_plans_axes(axes, config.spatial_dims)
        self.to_file_axes = [self.to_plans_axes.index(a) for a in range(len(self.to_plans_axes))]
        self.encoder = Swin(config, checkpointing=checkpointing)
        self.encoder.intensity = Intensity(input_channels, **(intensity or {}))
        if image_skip not in SKIPS:
            raise ValueError(f"image_skip must be one of {', '.join(SKIPS)}, got {image_skip!r}")
        self.raw_skip = image_skip == "raw"
        self.decoder_options = named(decoder)
        self.decoder = make_decoder(decoder, self.encoder, num_classes, deep_supervision)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B C *spatial] to what the decoder gets: its own view of the image, and the encoder's
        five maps.
        """
        image = image.permute(self.to_file_axes)
        # a module that only this network gives its encoder
        mapped = self.encoder.intensity(image)  # pyright: ignore[reportCallIssue]
        return image if self.raw_skip else mapped, self.encoder(mapped)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """[B C *spatial], any size, to logits [B classes *spatial]; with deep supervision the list
        of four.
        """
        image, maps = self.encode(image)
        logits = self.decoder(image, maps)
        if isinstance(logits, list):
            return [part.permute(self.to_plans_axes) for part in logits]
        return logits.permute(self.to_plans_axes)


def _to_plans_axes(axes: list[int] | None, dims: int) -> list[int]:
    """The order that brings [B C *spatial] to the axes of the plans. Raises ValueError where `axes`
    are no order of the spatial ones.
    """
    order = [0, 1, *(2 + axis for axis in axes or range(dims))]
    if sorted(order) != list(range(dims + 2)):
        raise ValueError(f"axes must be an order of {list(range(dims))}, got {axes}")
    return order


def output_sizes(size: Shape, steps: tuple[Shape, ...] = ()) -> list[Shape]:
    """The sizes of the four outputs for an image of `size`; `steps` as in `SwinConfig`, in the axes
    of `size`.
    """
    steps = steps or ((PATCH,) * len(size),) * OUTPUTS
    return list(accumulate(steps[: OUTPUTS - 1], ceil_div, initial=tuple(size)))


SKIPS = ("mapped", "raw")
NEUTRAL = {"scale": 1.0, "shift": 0.0, "low": float("-inf"), "high": float("inf")}
BENDS = ("start", "end", "gain")  # the buffers of Intensity's pieces
STRAIGHT = (0.0, 0.0, 0.0)  # a piece without effect


class Intensity(nn.Module):
    """x * scale + shift, clipped to [low, high], then bent; by channel, fixed, in the state_dict.

    scale, shift, low, high: one number per channel each; null: no bound.
    bends: (start, end, slope - 1) of each linear piece, one list per channel (`HUPolicy.bends`);
           null: the channel stays as it is, bit by bit. Buffers [C pieces], only where some channel
           bends. y = x + sum of (slope - 1) * (clamp(x, start, end) - start).

    A checkpoint without these buffers, such as that of an encoder alone, leaves them as they are.
    """

    scale: Tensor
    start: Tensor | None

    def __init__(
        self, channels: int, *, bends: list | None = None, **values: list[float | None]
    ) -> None:
        super().__init__()
        if unknown := sorted(values.keys() - NEUTRAL.keys()):
            raise ValueError(
                f"unknown intensity option(s) {unknown}; known: {sorted((*NEUTRAL, 'bends'))}"
            )
        for name, default in NEUTRAL.items():
            numbers = _by_channel(name, values.get(name), channels, default)
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))
        self._set_bends(_columns(_by_channel("bends", bends, channels, [])))

    def forward(self, x: Tensor) -> Tensor:
        """[B C *spatial] to the same shape."""
        scale, shift, low, high = (by_channel(getattr(self, name), x) for name in NEUTRAL)
        x = torch.clamp(x * scale + shift, low, high)
        return x if self.start is None else self._bent(x)

    def _bent(self, x: Tensor) -> Tensor:
        bent = x
        columns = (getattr(self, name).unbind(1) for name in BENDS)
        for piece in zip(*columns, strict=True):
            start, end, gain = (by_channel(values, x) for values in piece)
            # Not clamp(x, start, end) - start, which is the same bit by bit: of several clips of
            # one tensor the ONNX exporter (onnxscript 0.7) makes an invalid file.
            beyond = torch.clamp(x - start, torch.zeros_like(start), end - start)
            bent = bent + gain * beyond
        return bent

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # of a whole network: bend as that one does, or not at all
        if prefix + "scale" in state_dict:
            self._set_bends([state_dict.get(prefix + name) for name in BENDS])
        for name, own in self.named_buffers(recurse=False):
            state_dict.setdefault(prefix + name, own)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _set_bends(self, columns: Sequence[Tensor | None]) -> None:
        for name, column in zip(BENDS, columns, strict=True):
            self.register_buffer(
                name, None if column is None else column.detach().clone().to(self.scale.device)
            )


def _columns(pieces: list[list]) -> Sequence[Tensor | None]:
    """Starts, ends and gains of the pieces of each channel, [C pieces] each, or None."""
    most = max(map(len, pieces))
    if not most:
        return [None] * len(BENDS)
    rows = [[*own, *[STRAIGHT] * (most - len(own))] for own in pieces]
    return torch.tensor(rows, dtype=torch.float32).unbind(-1)


def _by_channel(name: str, entries: list | None, channels: int, default: object) -> list:
    """`entries`, null and what is missing replaced by `default`."""
    entries = [default if entry is None else entry for entry in entries or []]
    if len(entries) > channels:
        raise ValueError(
            f"intensity {name} takes one entry per channel, {channels} in all, got {entries}"
        )
    return entries + [default] * (channels - len(entries))
