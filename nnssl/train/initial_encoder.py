"""The encoder that a pretraining starts from: a random one of a preset, that of an earlier
checkpoint, or one for the weights of the run that it continues.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nnssl import checkpoint, files
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin

TOKEN = "mask_token"
OTHER_SIZE = "of no preset"  # in a header; converted weights may have any


def encoder(
    name: str, earlier: Path | str | None, dims: int, drop_path: float, checkpointing: bool
) -> tuple[Swin, dict]:
    """The encoder, and the header's entries on its start.

    name:    the preset, where there is no checkpoint; with one, the encoder is of its size.
    earlier: of nnssl_pretrain or nnssl_convert, or its address. Where it has no mask token for
             patches, that stays random.
    Raises FileNotFoundError, or ValueError (CheckpointError, TransferError) where it does not fit.
    """
    if earlier is None:
        config = preset(name, dims, drop_path=drop_path)
        return Swin(config, maskable=True, checkpointing=checkpointing), {}
    loaded = checkpoint.load(earlier)
    config = replace(loaded.encoder_config, drop_path=drop_path)
    _require_fitting(config, dims, earlier)
    size = loaded.header.get("preset", OTHER_SIZE)
    started = {"start": loaded.as_start(str(earlier)), "preset": size}
    return _loaded(loaded, config, checkpointing), started


def of_run(config: dict, drop_path: float, checkpointing: bool) -> Swin:
    """For a run that continues, by the "encoder" of its header; the run's own weights follow, so
    nothing of what it once started from is read.
    """
    own = replace(SwinConfig.from_dict(config), drop_path=drop_path)
    return Swin(own, maskable=True, checkpointing=checkpointing)


def _loaded(loaded: checkpoint.Checkpoint, config: SwinConfig, checkpointing: bool) -> Swin:
    plain = Swin(config)
    checkpoint.transfer(loaded, plain)
    maskable = Swin(config, maskable=True, checkpointing=checkpointing)
    token = _mask_token(loaded, maskable)
    maskable.load_state_dict({**plain.state_dict(), **token}, strict=False)
    return maskable


def _mask_token(loaded: checkpoint.Checkpoint, encoder: Swin) -> dict[str, Tensor]:
    """The earlier pretraining's, where it stands for a patch as it does here."""
    own, given = encoder.state_dict()[TOKEN], loaded.part(checkpoint.PREFIX).get(TOKEN)
    return {TOKEN: given} if given is not None and given.shape == own.shape else {}


def _require_fitting(config: SwinConfig, dims: int, earlier: Path | str) -> None:
    if (config.spatial_dims, config.in_channels) != (dims, 1):
        raise ValueError(
            f"{earlier} holds an encoder for {config.spatial_dims}D images of "
            f"{config.in_channels} channel(s), but this pretraining is {dims}D with one channel: "
            f"choose another checkpoint, or --dims {config.spatial_dims}{_inflate(config, earlier)}"
        )


def _inflate(config: SwinConfig, earlier: Path | str) -> str:
    """What helps a 2D encoder into 3D."""
    if config.spatial_dims == 3:
        return ""
    inflate = f"nnssl_convert {files.quoted(earlier)} -o NAME.pth --dims 3"
    return f", or inflate this one: {inflate}, and --from that"
