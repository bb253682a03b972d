"""Fine-tuning checkpoints truncated by a kill or a full disk: nnU-Net overwrites them in place."""

from __future__ import annotations

import zipfile
from pathlib import Path

from nnssl.types import PrintFn

BEST = "checkpoint_best.pth"


def whole(checkpoint: dict | str, print_fn: PrintFn) -> dict | str:
    """The checkpoint to load instead of `checkpoint`, a path or its content: itself, or the best
    one of its folder where it is truncated, which is logged. Raises ValueError where there is none.
    """
    if (
        isinstance(checkpoint, dict)
        or not Path(checkpoint).is_file()
        or _is_whole_archive(checkpoint)
    ):
        return checkpoint
    path = Path(checkpoint)
    damage = f"{path} is truncated: the run ended while it was being written"
    if best := _whole_best(path):
        print_fn(f"WARNING: {damage}. {BEST} is used instead; training continues from its epoch")
        return str(best)
    raise ValueError(
        f"{damage}, and no {BEST} exists to continue from. Start this fold again without --c, or "
        "use another of its checkpoints with -chk"
    )


def _whole_best(path: Path) -> Path | None:
    """The best checkpoint beside another one, where it is whole."""
    best = path.with_name(BEST)
    return best if best != path and best.is_file() and _is_whole_archive(best) else None


def _is_whole_archive(path: Path | str) -> bool:
    """PyTorch writes an archive, whose list of contents stands at its end."""
    return zipfile.is_zipfile(path)
