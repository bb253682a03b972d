"""Mistakes in the options of a pretraining, found before any scan is read: preprocessing may take
days.
"""

from __future__ import annotations

import torch

from nnssl.data.plan import CROPS
from nnssl.methods import METHODS, Method
from nnssl.train import batches, boards, cache, configure, graph, initial_encoder
from nnssl.train.capacity import trial
from nnssl.train.places import data_folder, dimensions, results_folder
from nnssl.train.pretrain_options import Options
from nnssl.train.run import LATEST

HOST = torch.device("cpu")


def method_class(name: str) -> type[Method]:
    """Raises ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def refuse(options: Options, device: torch.device) -> None:
    """Raise ValueError for options that cannot work, whatever the scans; FileNotFoundError for a
    checkpoint that is not there.

    With `only_prepare` options that only the training has may be of another machine.
    """
    method_class(options.method).Config.parse(options.settings)
    dimensions(options)
    if options.only_prepare:
        return
    boards.require_packages(options.tensorboard, options.wandb or boards.wandb_enabled())
    cache.require_supported(options.cache, device)
    require_graph(options, device, options.accumulate or 1)
    if options.batch_size:
        batches.require_divisible(options.batch_size, options.accumulate or 1)
    if not _continues(options):
        _try_method(options)


def require_graph(options: Options, device: torch.device, accumulate: int) -> None:
    """Raise ValueError for `--graph` where a step cannot be one graph."""
    if options.graph and (reason := graph.why_not(device, accumulate)):
        raise ValueError(f"--graph cannot be used: {reason}. Leave --graph out")


def _continues(options: Options) -> bool:
    """Whether there is a run to continue: its method and its start were good when it began."""
    results = results_folder(options, data_folder(options)[0])
    return options.resume and (results / LATEST).exists()


def _try_method(options: Options) -> None:
    """Build the method once, and the views of one crop: of the size that was typed, or of the
    largest that a plan derives from scans.
    """
    kind, dims = method_class(options.method), dimensions(options)
    crop = options.crop or (CROPS[0],) * dims
    # The scans decide some of the settings; none of these choices refuses a crop that another takes
    sizes = configure.Sizes(crop, (1.0,) * dims, scans=1, steps=1, batch_size=1)
    config, _ = configure.configure(kind, options.settings, sizes)
    encoder, _ = initial_encoder.encoder(
        options.preset, options.start, dims, config.drop_path, options.checkpointing
    )
    method = kind(encoder, config)
    trial(method, crop, HOST)
    configure.require_visible(config, crop)
