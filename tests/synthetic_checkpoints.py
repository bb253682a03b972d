"""Checkpoints of pretrainings that have not learnt anything."""

from __future__ import annotations

from pathlib import Path

import torch
from micro import ENCODER

from nnssl import checkpoint
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin

HU = {"low": -900.0, "high": 1100.0, "mean": -40.0, "sd": 310.0}


def pretrained(folder: Path, config: SwinConfig = ENCODER, seed: int = 0, hu: dict = HU) -> Path:
    """The path of a final checkpoint in `folder`."""
    torch.manual_seed(seed)
    header = {
        "method": "smit",
        "plan": {"hu": hu, "spacing": [3.0, 2.0, 2.0]},
        "crop": [32] * config.spatial_dims,
    }
    path = folder / "checkpoint_final.pth"
    checkpoint.write(path, checkpoint.pack(Swin(config, maskable=True), header, ["Jiang 2022"]))
    return path
