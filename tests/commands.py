"""nnU-Net's commands and ours, in this process: their start takes longer than their work on made
data.
"""

from __future__ import annotations

import multiprocessing
import sys
from importlib.metadata import entry_points
from multiprocessing.pool import ThreadPool

import pytest

from nnssl import cli


def command(name: str, *arguments: object):
    """One of nnU-Net's commands, by its own entry point, or of ours; what it returns."""
    if name.startswith("nnssl_"):
        function = getattr(cli, name.removeprefix("nnssl_"))
    else:
        (entry,) = entry_points(group="console_scripts", name=name)
        function = entry.load()
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        return function()
    finally:
        sys.argv = before


def nnssl_plan(*arguments: object) -> None:
    """Ours, which must succeed."""
    assert command("nnssl_plan", *arguments) == 0


class _Threads:
    """What nnU-Net uses of a multiprocessing context."""

    Pool = staticmethod(ThreadPool)


def pools_of_threads(patch: pytest.MonkeyPatch) -> None:
    """nnU-Net's pools of processes, which import PyTorch again or copy all of this one, become
    pools of threads.
    """
    patch.setattr(multiprocessing, "get_context", lambda method=None: _Threads)
    patch.setattr(multiprocessing, "Pool", ThreadPool)


def no_plots(patch: pytest.MonkeyPatch) -> None:
    """nnU-Net draws its curves after each epoch, which here takes longer than the epoch."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
