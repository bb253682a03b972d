"""A 2D checkpoint of ours as one in 3D (`nnssl_convert --dims 3`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnssl import checkpoint, files
from nnssl.checkpoint import PREFIX
from nnssl.convert import adapt
from nnssl.convert.opening import ForeignError
from nnssl.encoder.swin import Swin, SwinConfig


def is_flat(content: dict) -> bool:
    """Whether a checkpoint's encoder is 2D."""
    return SwinConfig.from_dict(content["header"]["encoder"]).spatial_dims == 2


def in_3d(content: dict, file: Path) -> dict:
    """The content of the checkpoint `file` with the encoder inflated (`adapt.inflated`), and
    without what fits 2D alone: the decoder, figures of the probe.

    Raises ForeignError for an encoder whose merges no cube's follow from.
    """
    header = content["header"]
    config = SwinConfig.from_dict(header["encoder"])
    if config.steps or config.merging != "all":
        raise ForeignError(
            f"{file} has strides by axis or MONAI's earlier merging (steps {list(config.steps)}, "
            f'merging "{config.merging}"), which cannot be inflated: leave out --dims'
        )
    flat = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in content["network_weights"].items()
        if name.startswith(PREFIX)
    }
    solid = replace(config, spatial_dims=3, windows="exact")
    encoder = Swin(solid, maskable="mask_token" in flat)
    encoder.load_state_dict(adapt.inflated(flat))
    kept = {name: said for name, said in header.items() if name not in ("decoder", "probe")}
    crop = [min(header["crop"]), *header["crop"]]
    start = {"checkpoint": file.name, "sha256": files.sha256(file), "method": header["method"]}
    return checkpoint.pack(encoder, {**kept, "crop": crop, "start": start}, content["citations"])
