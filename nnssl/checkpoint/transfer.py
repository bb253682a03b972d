"""Load a checkpoint's weights into an encoder: every tensor or none, each difference explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.checkpoint.decoder_header import DECODER, without_heads
from nnssl.checkpoint.file import Checkpoint
from nnssl.checkpoint.header import PREFIX
from nnssl.encoder.adapt_strides import STEM, adapt
from nnssl.encoder.swin import Swin

PRETRAINING_ONLY = {"mask_token": "pretraining only: nothing is hidden when fine-tuning"}


class TransferError(ValueError):
    """The weights do not fit the encoder; nothing was loaded."""


@dataclass(frozen=True)
class Transfer:
    """What `transfer` did: `matched` of the encoder's `total` tensors were set; `explained` tells
    of the rest.
    """

    matched: int
    total: int
    explained: dict[str, str]


def transfer(checkpoint: Checkpoint, encoder: Swin, labels: int = 0) -> Transfer:
    """Load every encoder tensor from `checkpoint`, in place, or raise TransferError and load
    nothing.

    Tensors are matched by name and shape. A stem for one channel is inflated to any number C of
    image channels: repeated, and divided by C, so that C equal channels give what one gave. One for
    several channels fits only as many. The last `labels` of `encoder`'s input channels are a
    cascade's: the pretraining knew nothing of them, and their weights start at zero, so that at
    first the encoder sees what it saw there. Where `encoder` leaves an axis as it is that the
    checkpoint's halves, patch embedding and merges are adapted (`nnssl.encoder.adapt_strides`).
    """
    wanted = _weights_of(encoder)
    given, explained = adapt(checkpoint.part(PREFIX), checkpoint.encoder_config, encoder.config)
    explained |= _without_pretraining_only(given, wanted)
    channels = wanted[STEM].shape[1]
    # with labels, as many channels as here would still be others
    if STEM in given and (labels or given[STEM].shape[1] != channels):
        given[STEM], done = _inflate(checkpoint, given[STEM], channels - labels, labels)
        explained[STEM] = ", ".join(filter(None, [explained.get(STEM), *done]))
    _require_match(checkpoint, given, wanted)
    encoder.load_state_dict(given, strict=False)  # the buffers are no part of a pretraining
    return Transfer(matched=len(wanted), total=len(wanted), explained=explained)


def _weights_of(encoder: Swin) -> dict[str, Tensor]:
    """Not named_parameters: LoRA's factors are written as the sums that they stand for."""
    buffers = dict(encoder.named_buffers())
    return {name: t for name, t in encoder.state_dict().items() if name not in buffers}


def _without_pretraining_only(
    given: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, str]:
    """Remove from `given`, in place, the tensors that only a pretraining has; the reason of each by
    its name.
    """
    unused = PRETRAINING_ONLY.keys() & (given.keys() - wanted.keys())
    for name in unused:
        del given[name]
    return {name: PRETRAINING_ONLY[name] for name in unused}


def transfer_decoder(
    checkpoint: Checkpoint, decoder: nn.Module, images: int, labels: int = 0
) -> Transfer:
    """Load every tensor of the decoder but its heads' from `checkpoint`, in place, or raise
    TransferError.

    images, labels: channels of the image and of a cascade's labels, for the layers that read the
    image; they are inflated as the encoder's first one.
    """
    given, wanted, explained = checkpoint.part(DECODER), without_heads(decoder.state_dict()), {}
    for name in given.keys() & wanted.keys():
        if _is_inflatable(given[name], wanted[name], images + labels):
            given[name], done = _inflate(checkpoint, given[name], images, labels)
            explained[name] = ", ".join(done)
    _require_match(checkpoint, given, wanted)
    _copy_into(wanted, given)  # which share the decoder's memory
    return Transfer(matched=len(wanted), total=len(wanted), explained=explained)


@torch.no_grad()
def _copy_into(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        tensor.copy_(given[name])


def _is_inflatable(given: Tensor, wanted: Tensor, channels: int) -> bool:
    """Whether the layers differ only in that `given` reads one channel and `wanted` `channels`."""
    if channels == 1 or given.ndim < 2 or given.shape[1] != 1:
        return False
    return tuple(wanted.shape) == (given.shape[0], channels, *given.shape[2:])


def _inflate(
    checkpoint: Checkpoint, stem: Tensor, images: int, labels: int
) -> tuple[Tensor, list[str]]:
    """`stem` for `images` channels and `labels`, and what was done to it."""
    _require_inflatable(checkpoint, stem.shape[1], images)
    done = []
    if stem.shape[1] != images:
        stem = stem.repeat_interleave(images, dim=1) / images
        done.append(f"inflated from 1 to {images} input channels")
    if labels:
        stem = _with_zeros(stem, labels)
        done.append(f"{labels} channels of labels start at zero")
    return stem, done


def _require_inflatable(checkpoint: Checkpoint, given: int, images: int) -> None:
    if given not in (1, images):
        raise TransferError(
            f"{checkpoint.path} was pretrained on {given} channels, but this image has {images}; "
            "nothing was loaded. A first layer for one channel is inflated to any number; one for "
            "several channels fits only that number. Pretrain on one channel, as nnssl_pretrain "
            "does, convert without --rgb, or train from a random start: -tr SwinScratchTrainer"
        )


def _with_zeros(stem: Tensor, channels: int) -> Tensor:
    """`stem` for as many more input channels, whose weights are zero."""
    zeros = torch.zeros_like(stem[:, :1]).repeat_interleave(channels, dim=1)
    return torch.cat([stem, zeros], dim=1)


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """A line for every tensor that is missing, unexpected or of another shape; the first twenty; ""
    for none.
    """
    problems = [*_other_names(given, wanted), *_other_shapes(given, wanted)]
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "\n  ".join(problems[:20] + more)


def _other_names(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    return [
        *(f"missing in the file: {name}" for name in missing),
        *(f"unexpected in the file: {name}" for name in unexpected),
    ]


def _other_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(given.keys() & wanted.keys()):
        here, there = tuple(given[name].shape), tuple(wanted[name].shape)
        if here != there:
            yield f"other shape: {name} is {here} in the file, {there} in the network"


def _require_match(
    checkpoint: Checkpoint, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    if shown := differences(given, wanted):
        raise TransferError(
            f"{checkpoint.path} does not fit the network; nothing was loaded:\n  {shown}\n"
            f"The checkpoint's encoder is {checkpoint.header['encoder']}"
        )
