"""The options of `nnssl_pretrain`; without importing PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl import address, limits
from nnssl.options import A_SIZE, at_least, option, require
from nnssl.types import Shape, Spacing

DEFAULT_STEPS = 100_000
CACHES = ("auto", "ram", "gpu", "off")  # where the collection is held (`nnssl.train.cache`)
PROBES = 10  # a run, by default
# options that several commands have
FOLDERS: dict = {
    "help": "folders of scans, searched at any depth: NIfTI, NRRD, MHA, MHD, DICOM",
    "flag": "-i",
    "metavar": "FOLDER",
}
DEVICE: dict = {
    "help": "default: cuda if available, else cpu",
    "flag": "-device",
    "choices": ("cpu", "cuda", "mps"),
}


def _channel(word: str) -> int | None:
    """None: all."""
    if word != "all" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a channel is a number from 0 up, or all; got {word!r}")
    return None if word == "all" else int(word)


def _channels(numbers: list[int | None]) -> tuple[int | None, ...] | None:
    return None if None in numbers else tuple(sorted({n for n in numbers if n is not None}))


@dataclass(frozen=True)
class Options:
    """The options of `nnssl_pretrain`; None: derived, and reported."""

    method: str = option(
        help="the method; --list shows them",
        flag="-m",
        metavar="METHOD",
        required=False,
        group="what to learn from",
    )
    sources: Sequence[Path] = option((), **FOLDERS)
    pattern: Sequence[str] = option(
        (),
        "which files of -i are scans: '*/ct.nii.gz'; ** for any depth; default: all",
        metavar="GLOB",
    )
    dataset_ids: Sequence[str] = option(
        (), "nnU-Net raw datasets by id or name: the images of channel 0", flag="-d", metavar="ID"
    )
    channels: Sequence[int] | None = option(  # None: all
        (0,),
        "channels of -d, or all; each is a separate scan; default: 0",
        metavar="N",
        read=_channel,
        join=_channels,
    )
    name: str | None = option(
        None, "name of the collection; default: the folders' and datasets' names"
    )
    spacing: Spacing | None = option(None, "mm; default: the median", metavar=("Z", "Y", "X"))
    clip: tuple[float, float] | None = option(
        None,
        "linear map of this HU range; default: -1000 to 3000, steep in soft tissue",
        flag="--hu",
        metavar=("LOW", "HIGH"),
    )
    no_hu: bool = option(
        False,
        "not CT: each scan is normalised by its own mean and std, as nnU-Net does; default for "
        "-d: by its dataset.json",
    )
    num_processes: int = option(
        factory=lambda: min(8, limits.cores()),
        help="preprocessing processes, each with one scan in memory; default: %(default)s",
        flag="-np",
        metavar="N",
        check=at_least(0),
    )
    update: bool = option(False, "add new scans of -i or -d to the existing collection")
    check: bool = option(False, "read every preprocessed scan, and preprocess damaged ones again")
    part_id: int = option(
        0, "this machine's part of the preprocessing, from 0; default: %(default)s", flag="-part_id"
    )
    num_parts: int = option(
        1,
        "number of machines that preprocess; default: %(default)s",
        flag="-num_parts",
        check=at_least(1),
    )
    only_prepare: bool = option(False, "preprocess and stop before training")

    preset: str = option(
        "smit",
        "the encoder: tiny, smit, smit_miccai22, monai; default: %(default)s",
        flag="-a",
        metavar="PRESET",
        group="how to train",
    )
    start: Path | str | None = option(
        None,
        (
            "start from the encoder of this checkpoint, at its size, instead of a random one; "
            "also hf://owner/repo/file"
        ),
        flag="--from",
        metavar="CHECKPOINT",
        read=address.path_or_address,
    )
    steps: int | None = option(
        None, f"optimiser steps; default: {DEFAULT_STEPS}", check=at_least(1)
    )
    epochs: int | None = option(
        None, "instead of --steps: how often each scan is visited", check=at_least(1)
    )
    batch_size: int | None = option(
        None, "scans per step, over all processes; default: as many as fit", check=at_least(1)
    )
    accumulate: int | None = option(
        None,
        "number of parts (micro-batches) in which a step's batch is computed; default: 1, or with "
        "--c as before",
        metavar="N",
        check=at_least(1),
    )
    crop: Shape | None = option(
        None, "voxels z y x, or y x; default: the plan's", metavar="N", check=A_SIZE
    )
    dims: int | None = option(None, "2: axial slices, for nnU-Net's 2d; default: 3", choices=(2, 3))
    settings: Sequence[str] = option(
        (),
        "any field of the method's config, such as lr=1e-4 or mask_ratio=0.6",
        flag="--set",
        metavar="FIELD=VALUE",
    )
    seed: int = option(
        0, "of weights, views and the order of scans; default: %(default)s", check=at_least(0)
    )
    resume: bool = option(False, "continue from checkpoint_latest.pth, exactly", flag="--c")
    output: Path | None = option(
        None, "results folder, instead of the default", flag="-o", metavar="FOLDER"
    )

    device: str | None = option(None, group="on what", **DEVICE)
    workers: int | None = option(
        None,
        "processes that read crops; default: depends on the machine",
        metavar="N",
        check=at_least(0),
    )
    cache: str = option(
        "auto",
        "hold the preprocessed scans in memory; auto: if they fit; never changes a crop; default: "
        "%(default)s",
        choices=CACHES,
    )
    fp32: bool = option(False, "no bf16: neither on a GPU nor in a CPU's products")
    compile: bool = option(False, "torch.compile the encoders")
    graph: bool = option(False, "replay each step as one CUDA graph; never changes the result")
    checkpointing: bool = option(False, "recompute activations: less memory, more time")

    log_every: int = option(
        10,
        "steps between rows of the log; default: %(default)s",
        metavar="STEPS",
        check=at_least(1),
        group="what is written",
    )
    save_every: int = option(
        1000,
        (
            "steps between saves of checkpoint_latest.pth and the pictures, which are also saved "
            "every ten minutes; default: %(default)s"
        ),
        metavar="STEPS",
        check=at_least(1),
    )
    probe: str | None = option(
        None,
        "a labelled nnU-Net raw dataset, by id or name, to judge the encoder by",
        metavar="DATASET",
    )
    probe_cases: int = option(
        10, "labelled cases, half of them to fit, half to test; default: %(default)s", metavar="N"
    )
    probe_every: int | None = option(
        None,
        "steps between probes; default: ten times in the run",
        metavar="STEPS",
        check=at_least(1),
    )
    tensorboard: bool = option(
        False, 'also log to TensorBoard (pip install "nnssl-swin[tensorboard]")'
    )
    wandb: bool = option(
        False,
        'also log to Weights & Biases (pip install "nnssl-swin[wandb]"), into the project that '
        "$nnUNet_wandb_project names; nnU-Net's $nnUNet_wandb_enabled=1 does the same",
    )

    def __post_init__(self) -> None:
        require(self)
        if None not in (self.steps, self.epochs):
            raise ValueError(
                f"--steps {self.steps} and --epochs {self.epochs} both give the length of the run: "
                "leave one of them out"
            )


@dataclass(frozen=True)
class CommandOptions(Options):
    """And what the command alone understands."""

    num_gpus: int = option(
        1,
        "processes on this machine; on several machines: torchrun",
        flag="-num_gpus",
        metavar="N",
        group="on what",
    )
    list: bool = option(False, "list the methods", group="")
