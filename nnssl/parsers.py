"""What the commands take: what each is for, and its options, mostly of a dataclass.

Made without importing PyTorch.
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
        "the same line with --c continues exactly.",
    )
    options.add(parser, CommandOptions)
    return parser


def plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_plan",
        description="Plans for nnU-Net that name our network, the pretrained checkpoint with its "
        "hash, and the recipe. Patch and batch size are planned for this network's memory. They "
        "share the data of nnU-Net's own plans where both would preprocess the same. Train with: "
        "nnUNetv2_train ... -p NAME.",
    )
    options.add(parser, PlansRequest)
    options.add(parser, Recipe, unset=True)
    return parser


def convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_convert",
        description="A checkpoint of ours from third-party weights: SMIT, MONAI's Swin UNETR, "
        "VoCo, SuPreM, 2D ImageNet Swins of timm and torchvision. Every tensor is loaded, adapted "
        "or left out with a reason, or nothing is written. Nothing in the file is executed.",
    )
    options.add(parser, ConvertRequest)
    return parser


def embed_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_embed",
        description="Features of scans from a pretrained encoder: for each scan the means of its "
        "five maps over the body, in one table; with --dense a map in full, with --masks means "
        "by label. Scans are prepared as for the pretraining.",
        epilog="Stopped, the same line continues where it was.",
    )
    options.add(parser, EmbedOptions)
    return parser


def export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_export",
        description="One fold of a trained nnU-Net model as ONNX and as a program of torch.export, "
        "for its patch size and any number of patches at a time, with model.json: spacing, "
        "normalisation, axes, labels. Each file is compared with PyTorch's own logits before it "
        "is kept. Resampling, normalisation and the sliding window are not in the files.",
    )
    options.add(parser, ExportRequest)
    return parser


def inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_inspect", description="What is in a checkpoint of nnssl_pretrain."
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=address.path_or_address,
        help="a checkpoint_final.pth or checkpoint_latest.pth, hf://owner/repo/file, https://..., "
        f"or a name: {weights.NAMES}; default: the one that a training would start from",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="for programs: all of the header, the file's hash, and the run's manifest beside it",
    )
    parser.add_argument(
        "--nnunet-env",
        action="store_true",
        help="print the line that lets nnU-Net find our trainers; needed after an editable install "
        "only",
    )
    return parser


def demo_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_demo",
        description="Pretraining, planning, training and prediction on CT phantoms that are made "
        "on the spot, through the same commands that you would type. Needs no data and no GPU; "
        "made for under 10 minutes on two cores.",
        epilog="The same line continues after the last finished stage. Nothing is written outside "
        "of the folder.",
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
        help="your own CT scans for the pretraining",
    )
    parser.add_argument("-device", choices=DEVICE["choices"], help=DEVICE["help"])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute or two: every command runs, nothing is learnt",
    )
    return parser


def report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_report",
        description="One HTML page, which opens anywhere without a network: of a pretraining its "
        "losses, monitors, views, probe, time and what was left out; of a collection, before it is "
        "trained on, three planes and the histogram of its scans, and what was left out and why.",
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
        help="where to write; default: report.html in the folder",
    )
    parser.add_argument(
        "--scans",
        metavar="N",
        type=int,
        default=60,
        help="scans of a collection that are shown; default: %(default)s",
    )
    return parser
