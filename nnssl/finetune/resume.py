"""Which of a fold's checkpoints a fine-tuning continues from: the newest, and a whole one.

nnU-Net takes the final one wherever there is one. It overwrites its checkpoints in place, so that a
kill or a full disk truncates them; those of our trainers replace the former one once they are
whole.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from nnssl.types import FINAL, PrintFn

LATEST = "checkpoint_latest.pth"
ALL = (FINAL, LATEST, "checkpoint_best.pth")  # that a fold may have


def newest(checkpoint: dict | str, print_fn: PrintFn) -> dict | str:
    """What `--c` continues from where nnU-Net chose `checkpoint`, a path or its content: instead of
    a final one the latest of a later training of this fold, which is logged. That training was made
    longer or started again, and then stopped: nnU-Net removes the latest where one ends.
    """
    if isinstance(checkpoint, dict) or Path(checkpoint).name != FINAL:
        return checkpoint
    final, latest = Path(checkpoint), Path(checkpoint).with_name(LATEST)
    if not latest.is_file() or _written(latest) <= _written(final) or not _is_whole_archive(latest):
        return checkpoint
    print_fn(f"{LATEST} is newer than {FINAL}, of a training that was stopped: it is continued")
    return str(latest)


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
    others = [path.with_name(name) for name in ALL if name != path.name]
    whole = [other for other in others if other.is_file() and _is_whole_archive(other)]
    return max(whole, key=_written, default=None)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _is_whole_archive(path: Path | str) -> bool:
    """PyTorch writes an archive, whose list of contents stands at its end."""
    return zipfile.is_zipfile(path)
