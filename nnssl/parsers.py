"""The parsers of the commands: what each is for, and its options, mostly of a dataclass.

Built without importing PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnssl import address, options, weights
from nnssl.convert.request import ConvertRequest
from nnssl.embed.embed_options import EmbedOptions
from nnssl.export import ExportRequest
from nnssl.plans.plans_request import PlansRequest
from nnssl.recipe import Recipe
from nnssl.train.pretrain_options import DEVICE, CommandOptions


def pretrain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_pretrain",
        description="Pretrain a Swin encoder on raw, unlabelled CT (with --no-hu: MRI). Needs "
        "nnU-Net's three variables; writes preprocessed scans to $nnUNet_preprocessed/nnssl/NAME "
        "and results to $nnUNet_results/nnssl/NAME.",
        epilog="Stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or Ctrl-C it saves and exits with 75; "
        "the same command with --c continues exactly.",
    )
    options.add(parser, CommandOptions)
    return parser


def plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_plan",
        description="Writes plans for nnU-Net that name our network, the pretrained checkpoint "
        "with its hash, and the recipe. Patch and batch size are planned for this "
        "network's memory. They share the preprocessed data of nnU-Net's own plans "
        "where preprocessing is identical. Train with: nnUNetv2_train ... -p NAME.",
    )
    options.add(parser, PlansRequest)
    options.add(parser, Recipe, unset=True)
    return parser


def convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_convert",
        description="Converts third-party weights to a checkpoint of this package: SMIT, MONAI's "
        "Swin UNETR, VoCo, SuPreM, 2D ImageNet Swins of timm and torchvision. Every "
        "tensor is loaded, adapted, or left out for a stated reason; otherwise "
        "nothing is written. Nothing in the file is executed.",
    )
    options.add(parser, ConvertRequest)
    return parser


def embed_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_embed",
        description="Computes features of scans with a pretrained encoder: for each scan the "
        "means of the five feature maps over the body, in one table; with --dense "
        "also a full map, with --masks also means per label. Scans are preprocessed "
        "as in the pretraining.",
        epilog="After a stop, the same command continues from there.",
    )
    options.add(parser, EmbedOptions)
    return parser


def export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_export",
        description="Exports one fold of a trained nnU-Net model to ONNX and torch.export, for "
        "its patch size and any batch size, with model.json: spacing, normalisation, "
        "axes, labels. Each file is kept only if its logits match PyTorch's. "
        "Resampling, normalisation and the sliding window are not included.",
    )
    options.add(parser, ExportRequest)
    return parser


def inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_inspect", description="Prints what is in a checkpoint of nnssl_pretrain."
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=address.path_or_address,
        help="a checkpoint_final.pth or checkpoint_latest.pth, hf://owner/repo/file, https://..., "
        f"or a name: {weights.NAMES}; default: the checkpoint that a training would start "
        "from",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help=(
            "print JSON: the whole header, the file's hash, and the run's manifest if it lies "
            "next to the file"
        ),
    )
    parser.add_argument(
        "--nnunet-env",
        action="store_true",
        help="print the shell line that lets nnU-Net find our trainers; needed only after an "
        "editable install",
    )
    return parser


def demo_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_demo",
        description="Runs pretraining, planning, training and prediction on CT phantoms generated "
        "on the spot, through the same commands that you would type. Needs no data "
        "and no GPU; takes under 10 minutes on two cores.",
        epilog="The same command continues after the last finished stage. Nothing is written "
        "outside the folder.",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FOLDER",
        type=Path,
        default=Path("nnssl_demo"),
        help="a new folder, or one of an earlier demo; default: %(default)s",
    )
    parser.add_argument(
        "-i",
        dest="scans",
        metavar="FOLDER",
        type=Path,
        help="your own CT scans for the pretraining, instead of phantoms",
    )
    parser.add_argument("-device", choices=DEVICE["choices"], help=DEVICE["help"])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test of a minute or two: every command runs, but nothing is learnt",
    )
    return parser


def report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_report",
        description="Writes one self-contained HTML page. For a pretraining: losses, monitors, "
        "views, probe, time and the scans left out. For a collection before training: "
        "three planes and the histogram of its scans, and the scans left out with "
        "reasons.",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="results of nnssl_pretrain, or a collection of preprocessed scans",
    )
    parser.add_argument(
        "-o",
        dest="page",
        metavar="PAGE",
        type=Path,
        help="file or existing folder to write to; default: report.html in FOLDER",
    )
    parser.add_argument(
        "--scans",
        metavar="N",
        type=int,
        default=60,
        help="number of scans of a collection to show; default: %(default)s",
    )
    return parser
