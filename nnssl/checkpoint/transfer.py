"""A checkpoint's weights into an encoder: every tensor or none, each difference explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.checkpoint.file import Checkpoint
from nnssl.checkpoint.header import DECODER, PREFIX, without_heads
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
    buffers = dict(encoder.named_buffers())
    # not named_parameters: LoRA's factors are written as the sums that they stand for
    wanted = {name: t for name, t in encoder.state_dict().items() if name not in buffers}
    given, explained = adapt(checkpoint.part(PREFIX), checkpoint.encoder_config, encoder.config)
    for name in PRETRAINING_ONLY.keys() & (given.keys() - wanted.keys()):
        del given[name]
        explained[name] = PRETRAINING_ONLY[name]
    images = wanted[STEM].shape[1] - labels
    if STEM in given and given[STEM].shape[1] != images + labels:
        given[STEM], done = _inflate(checkpoint, given[STEM], images, labels)
        explained[STEM] = ", ".join(filter(None, [explained.get(STEM), *done]))
    _require_match(checkpoint, given, wanted)
    encoder.load_state_dict(given, strict=False)  # the buffers are no part of a pretraining
    return Transfer(matched=len(wanted), total=len(wanted), explained=explained)


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
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])  # shares the decoder's memory
    return Transfer(matched=len(wanted), total=len(wanted), explained=explained)


def _is_inflatable(given: Tensor, wanted: Tensor, channels: int) -> bool:
    """Whether the layers differ only in that `given` reads one channel and `wanted` `channels`."""
    here, there = tuple(given.shape), tuple(wanted.shape)
    return (
        here != there and len(here) > 1 and here[1] == 1 and there == (here[0], channels, *here[2:])
    )


def _inflate(
    checkpoint: Checkpoint, stem: Tensor, images: int, labels: int
) -> tuple[Tensor, list[str]]:
    """`stem` for `images` channels and `labels`, and what was done to it."""
    given = stem.shape[1]
    if given not in (1, images):
        raise TransferError(
            f"{checkpoint.path} was pretrained on {given} channels, this image has {images}; "
            "nothing was loaded. A first layer for one channel is inflated to any number of them, "
            "one for several fits only as many. Pretrain on one channel, as nnssl_pretrain does, "
            "convert without --rgb, or train from a random start: -tr SwinScratchTrainer"
        )
    done = []
    if given != images:
        stem = stem.repeat_interleave(images, dim=1) / images
        done.append(f"inflated from 1 to {images} input channels")
    if labels:
        zeros = torch.zeros_like(stem[:, :1]).repeat_interleave(labels, dim=1)
        stem = torch.cat([stem, zeros], dim=1)
        done.append(f"{labels} channels of labels start at zero")
    return stem, done


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """A line for every tensor that is missing, unexpected or of another shape; the first twenty; ""
    for none.
    """
    problems = [f"missing in the file: {name}" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"unexpected in the file: {name}" for name in sorted(given.keys() - wanted.keys())]
    for name in sorted(given.keys() & wanted.keys()):
        here, there = tuple(given[name].shape), tuple(wanted[name].shape)
        if here != there:
            problems.append(f"other shape: {name} is {here} in the file, {there} in the network")
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "\n  ".join(problems[:20] + more)


def _require_match(
    checkpoint: Checkpoint, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    if shown := differences(given, wanted):
        raise TransferError(
            f"{checkpoint.path} does not fit the network; nothing was loaded:\n  {shown}\n"
            f"The checkpoint's encoder is {checkpoint.header['encoder']}"
        )
