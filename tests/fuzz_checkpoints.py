"""Random damage to checkpoints: each is refused, or loads as something that can be used and shown.

`fuzz_headers.py` draws the cases.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from synthetic_checkpoints import pretrained

from nnssl import checkpoint
from nnssl.encoder.swin import Swin

VALUES = [
    None,
    0,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    -1e308,
    10**18,
    True,
    "x",
    "",
    "\x1b[2K\n",
    [],
    {},
    [1, 2],
    ["a"],
    [[1]],
    {"a": 1},
    {1: 2},
    [10**9] * 4,
    [float("nan")] * 3,
    [0, 0, 0],
    [-1, 1, 1],
    "../../outside",
    b"\0",
    torch.zeros(2),
    [[[[[]]]]],
]
DAMAGED = ("header", "nnssl_adaptation_plan", "citations", "format_version")


def write(folder: Path) -> Path:
    """A whole checkpoint of a micro encoder."""
    folder.mkdir()
    return pretrained(folder)


def damage_header(path: Path, rng: np.random.Generator) -> None:
    """One to three of its values replaced, or left out, wherever they stand; written by PyTorch."""
    content = copy.deepcopy(torch.load(path, weights_only=True))
    for _ in range(rng.integers(1, 4)):
        inner, key = content, DAMAGED[rng.integers(0, len(DAMAGED))]
        while isinstance(inner.get(key), dict) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            key = list(inner)[rng.integers(0, len(inner))]
        if rng.random() < 0.2:
            inner.pop(key, None)
        else:
            inner[key] = copy.deepcopy(VALUES[rng.integers(0, len(VALUES))])
    torch.save(content, path)


def attempt(path: Path) -> str:
    """Raises AssertionError for what is neither refused nor of use, and whatever else goes
    wrong.
    """
    try:
        loaded = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        if not str(error).replace("\n", "").isprintable():
            raise AssertionError("an error that a terminal would obey") from error
        return "refused"
    shown = checkpoint.describe(loaded)
    if not shown.replace("\n", "").isprintable():
        raise AssertionError("a description that a terminal would obey")
    encoder = Swin(loaded.encoder_config)
    checkpoint.transfer(loaded, encoder)
    if not all(torch.isfinite(weight).all() for weight in encoder.parameters()):
        raise AssertionError("weights that are not finite were taken")
    return "kept"
