"""Self-supervised pretraining of Swin encoders on raw CT, fine-tuned inside stock nnU-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnssl import conflict, trainer_path

if TYPE_CHECKING:
    from pathlib import Path

    from nnssl.embed.scan_encoder import Encoder
    from nnssl.types import Spacing

__version__ = "0.1.0"

conflict.refuse()
trainer_path.add_trainers()
if _repository := trainer_path.source_checkout():
    # so that nnssl.trainers and nnssl.plans are found beside nnssl/, as in setup.py
    __path__.append(_repository)


def load_encoder(path: Path | str | None = None, spacing: Spacing | None = None) -> Encoder:
    """The encoder of a checkpoint, by path, address or name, as a plain `nn.Module` that prepares
    scans.

    See `nnssl.embed.scan_encoder.load_encoder`; it is imported here only when it is called.
    """
    from nnssl.embed.scan_encoder import load_encoder as load

    return load(path, spacing)
