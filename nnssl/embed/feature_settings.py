"""The settings that features depend on, in embed.json: one folder holds features of one kind."""

from __future__ import annotations

from pathlib import Path

from nnssl import files
from nnssl.embed import dense
from nnssl.embed.embed_options import EmbedOptions
from nnssl.embed.scan_encoder import Encoder

NOTE = "embed.json"
VERSION = 1  # goes up when the same settings would give other numbers


def checked(folder: Path, encoder: Encoder, options: EmbedOptions) -> dict:
    """What they are. ValueError where the folder has others."""
    path, settings = folder / NOTE, _of_encoder(encoder) | _of_options(options)
    _require_same(files.read_json(path) if path.exists() else settings, settings, folder)
    return settings


def store(folder: Path, settings: dict) -> str:
    """Write them; their fingerprint."""
    files.write_json(folder / NOTE, settings)
    return files.fingerprint(settings)


def _require_same(before: dict, settings: dict, folder: Path) -> None:
    other = [key for key in settings if before.get(key) != settings[key]]
    if other:
        was = "; ".join(f"{key}: was {before.get(key)}, now {settings[key]}" for key in other)
        raise ValueError(
            f"{folder} holds features computed with other settings ({was}); choose another -o, or "
            f"remove {folder}"
        )


def _of_encoder(encoder: Encoder) -> dict:
    return {
        "version": VERSION,
        "method": encoder.about["method"],
        "sha256": encoder.about["sha256"],
        "spacing": list(encoder.spacing),
        "hu": encoder.hu and encoder.hu.to_dict(),
        "channels": list(encoder.channels),
        "strides": [list(stride) for stride in encoder.strides],
    }


def _of_options(options: EmbedOptions) -> dict:
    window = options.window
    return {
        "window": list(window) if isinstance(window, tuple) else window,
        "dense": options.dense,
        "format": dense.ENDING[options.nifti] if options.dense else None,
        "masks": str(options.masks.absolute()) if options.masks else None,
    }
