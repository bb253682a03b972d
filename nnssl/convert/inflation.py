"""A 2D checkpoint of ours as one in 3D (`nnssl_convert --dims 3`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnssl import address, checkpoint
from nnssl.checkpoint import PREFIX, Checkpoint
from nnssl.convert import adapt
from nnssl.convert.opening import ForeignError
from nnssl.encoder.swin import Swin

# the settings of an encoder that computes the same in 3D, as in `adapt.inflated`
EXACT = {"steps": (), "merging": "all", "windows": "exact", "convolutions": False}


def is_flat(loaded: Checkpoint) -> bool:
    """Whether its encoder is 2D."""
    return loaded.encoder_config.spatial_dims == 2


def in_3d(loaded: Checkpoint) -> dict:
    """The content of a checkpoint with the encoder inflated (`adapt.inflated`), and without what
    fits 2D alone: the decoder, figures of the probe.

    Raises ForeignError for an encoder that cannot be inflated.
    """
    config, flat, header = loaded.encoder_config, loaded.part(PREFIX), loaded.header
    others = [name for name, value in EXACT.items() if getattr(config, name) != value]
    if others:
        said = ", ".join(f"{name}={getattr(config, name)!r}" for name in others)
        raise ForeignError(
            f"{loaded.path} has an encoder that cannot be inflated exactly ({said}): leave out "
            "--dims"
        )
    solid = replace(config, spatial_dims=3)
    encoder = Swin(solid, maskable="mask_token" in flat)
    encoder.load_state_dict(adapt.inflated(flat))
    kept = {name: said for name, said in header.items() if name not in ("decoder", "probe")}
    crop = [min(loaded.crop), *loaded.crop]
    start = loaded.as_start(Path(address.pinned(loaded.path, loaded.path)).name)
    return checkpoint.pack(encoder, {**kept, "crop": crop, "start": start}, loaded.citations)
