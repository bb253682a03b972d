"""The options of `nnssl_pretrain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnssl import address, limits


def pretrain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_pretrain",
        description="Pretrain a Swin encoder on raw, unlabelled CT (with --no-hu: MRI). Needs "
        "nnU-Net's three variables; writes preprocessed scans to $nnUNet_preprocessed/nnssl/NAME "
        "and results to $nnUNet_results/nnssl/NAME.",
        epilog="Stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or Ctrl-C it saves and exits with 75; "
        "the same line with --c continues exactly.",
    )
    what = parser.add_argument_group("what to learn from")
    what.add_argument("-m", dest="method", metavar="METHOD", help="the method; --list shows them")
    what.add_argument(
        "-i",
        dest="sources",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        default=(),
        help="folders of scans, searched at any depth: NIfTI, NRRD, MHA, MHD, DICOM",
    )
    what.add_argument(
        "--pattern",
        metavar="GLOB",
        nargs="+",
        default=(),
        help="which files of -i are scans: '*/ct.nii.gz'; ** for any depth; default: all",
    )
    what.add_argument(
        "-d",
        dest="dataset_ids",
        metavar="ID",
        nargs="+",
        default=(),
        help="nnU-Net raw datasets by id or name: the images of channel 0",
    )
    what.add_argument(
        "--channels",
        metavar="N",
        nargs="+",
        type=_channel,
        default=(0,),
        help="of -d, each a scan by itself, or all; default: 0",
    )
    what.add_argument(
        "--name", help="name of the collection; default: the folders' and datasets' names"
    )
    what.add_argument(
        "--spacing", metavar=("Z", "Y", "X"), nargs=3, type=float, help="mm; default: the median"
    )
    what.add_argument(
        "--hu",
        dest="clip",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="linear map of this HU range; default: -1000 to 3000, steep in soft tissue",
    )
    what.add_argument(
        "--no-hu",
        action="store_true",
        help="not CT: each scan is normalised by its own mean and std, as nnU-Net does; default "
        "for -d: what its dataset.json says",
    )
    what.add_argument(
        "-np",
        dest="num_processes",
        metavar="N",
        type=int,
        default=min(8, limits.cores()),
        help="processes, each with one scan in memory; default: %(default)s",
    )
    what.add_argument(
        "--update",
        action="store_true",
        help="take new scans of -i or -d into the collection there is",
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="read every preprocessed scan, and store those again that a disk has damaged",
    )
    what.add_argument(
        "-part_id", type=int, default=0, help="this machine's part of the preprocessing, from 0"
    )
    what.add_argument(
        "-num_parts", type=int, default=1, help="how many machines share the preprocessing"
    )
    what.add_argument(
        "--only-prepare", action="store_true", help="preprocess and stop before training"
    )

    how = parser.add_argument_group("how to train")
    how.add_argument(
        "-a",
        dest="preset",
        metavar="PRESET",
        default="smit",
        help="the encoder: tiny, smit, smit_miccai22, monai; default: %(default)s",
    )
    how.add_argument(
        "--from",
        dest="start",
        metavar="CHECKPOINT",
        type=address.named,
        help="start from this encoder, of its size, instead of a random one; "
        "also hf://owner/repo/file",
    )
    how.add_argument("--steps", type=int, help="optimiser steps; default: 100000")
    how.add_argument(
        "--epochs", type=int, help="instead of --steps: how often each scan is visited"
    )
    how.add_argument(
        "--batch-size", type=int, help="scans per step, over all processes; default: what fits"
    )
    how.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="parts in which a step's batch is computed",
    )
    how.add_argument(
        "--crop", metavar="N", nargs="+", type=int, help="voxels z y x, or y x; default: the plan's"
    )
    how.add_argument(
        "--dims", type=int, choices=(2, 3), help="2: axial slices, for nnU-Net's 2d; default: 3"
    )
    how.add_argument(
        "--set",
        dest="settings",
        metavar="FIELD=VALUE",
        nargs="+",
        default=(),
        help="any field of the method's config, such as lr=1e-4 or mask_ratio=0.6",
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--c",
        dest="resume",
        action="store_true",
        help="continue from checkpoint_latest.pth, exactly",
    )
    how.add_argument(
        "-o",
        dest="output",
        metavar="FOLDER",
        type=Path,
        help="results folder, instead of the default",
    )

    where = parser.add_argument_group("on what")
    where.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu"
    )
    where.add_argument(
        "-num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine; on several machines: torchrun",
    )
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read crops; default: by the machine",
    )
    where.add_argument(
        "--cache",
        choices=("auto", "ram", "gpu", "off"),
        default="auto",
        help="hold the preprocessed scans in memory; auto: where they fit; never changes a "
        "crop; default: %(default)s",
    )
    where.add_argument("--fp32", action="store_true", help="no bf16 on the GPU")
    where.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    where.add_argument(
        "--graph", action="store_true", help="replay each step as one CUDA graph; never changes it"
    )
    where.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: less memory, more time"
    )

    watch = parser.add_argument_group("what is written")
    watch.add_argument(
        "--log-every", type=int, default=10, metavar="STEPS", help="default: %(default)s"
    )
    watch.add_argument(
        "--save-every",
        type=int,
        default=1000,
        metavar="STEPS",
        help="checkpoint_latest.pth and the pictures, and every ten minutes; default: %(default)s",
    )
    watch.add_argument(
        "--probe",
        metavar="DATASET",
        help="a labelled nnU-Net raw dataset, by id or name, to judge the encoder by",
    )
    watch.add_argument(
        "--probe-cases",
        type=int,
        default=10,
        metavar="N",
        help="labelled cases, half of them to fit, half to test; default: %(default)s",
    )
    watch.add_argument(
        "--probe-every", type=int, metavar="STEPS", help="default: ten times in the run"
    )
    watch.add_argument(
        "--tensorboard",
        action="store_true",
        help='also for TensorBoard (pip install "nnssl-swin[tensorboard]")',
    )
    watch.add_argument(
        "--wandb",
        action="store_true",
        help='also for Weights & Biases (pip install "nnssl-swin[wandb]"), into the project that '
        "$nnUNet_wandb_project names; nnU-Net's $nnUNet_wandb_enabled=1 does the same",
    )
    parser.add_argument("--list", action="store_true", help="list the methods")
    return parser


def _channel(word: str) -> int | None:
    """None: all."""
    if word != "all" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a channel is a number from 0, or all; got {word!r}")
    return None if word == "all" else int(word)
