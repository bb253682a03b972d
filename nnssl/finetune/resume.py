"""Fine-tuning checkpoints truncated by a kill or a full disk: nnU-Net overwrites them in place."""

from __future__ import annotations

import zipfile
from pathlib import Path

from nnssl.types import PrintFn

OTHERS = ("checkpoint_latest.pth", "checkpoint_best.pth")  # that a fold may have


def whole(checkpoint: dict | str, print_fn: PrintFn) -> dict | str:
    """The checkpoint to load instead of `checkpoint`, a path or its content: itself, or the newest
    whole one of its folder where it is truncated, which is logged. Raises ValueError where there is
    none.
    """
    if (
        isinstance(checkpoint, dict)
        or not Path(checkpoint).is_file()
        or _is_whole_archive(checkpoint)
    ):
        return checkpoint
    path = Path(checkpoint)
    damage = f"{path} is truncated: the run ended while it was being written"
    if newest := _newest_whole(path):
        print_fn(f"WARNING: {damage}. {newest.name}, of an earlier epoch, is used instead")
        return str(newest)
    raise ValueError(
        f"{damage}, and no other checkpoint exists to continue from. Start this fold again without "
        "--c, or use another of its checkpoints with -chk"
    )


def _newest_whole(path: Path) -> Path | None:
    """The newest whole one of the other checkpoints in its folder. nnU-Net removes the latest only
    once the final one is written.
    """
    others = [path.with_name(name) for name in OTHERS if name != path.name]
    whole = [other for other in others if other.is_file() and _is_whole_archive(other)]
    return max(whole, key=lambda other: other.stat().st_mtime, default=None)


def _is_whole_archive(path: Path | str) -> bool:
    """PyTorch writes an archive, whose list of contents stands at its end."""
    return zipfile.is_zipfile(path)
