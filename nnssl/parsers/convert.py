"""The options of `nnssl_convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnssl import address


def convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_convert",
        description="A checkpoint of ours from third-party weights: SMIT, MONAI's Swin UNETR, "
        "VoCo, SuPreM, 2D ImageNet Swins of timm and torchvision. Every tensor is loaded, adapted "
        "or left out with a reason, or nothing is written. Nothing in the file is executed.",
    )
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        type=address.named,
        help="a file of PyTorch or safetensors, or its address: hf://owner/repo/file, https://...; "
        "or a checkpoint of ours, for --hub and back",
    )
    add(
        "-o",
        dest="output",
        metavar="CHECKPOINT",
        type=Path,
        required=True,
        help="where to write, a file or with --hub a folder; must not exist",
    )
    add(
        "--hub",
        action="store_true",
        help="write a folder for Hugging Face: model.safetensors, config.json, and README.md as "
        "model card",
    )
    add(
        "--half",
        action="store_true",
        help="store the weights in half precision, half the size; they are read as float32",
    )
    add(
        "--about",
        metavar="FILE",
        type=Path,
        help="Markdown for the card: whose scans, figures, limits, and what else no file holds",
    )
    add(
        "--licence",
        metavar="NAME",
        help="of the weights, for the card, such as apache-2.0; default: as their source states it",
    )
    add(
        "--source",
        metavar="NAME",
        help="whose weights, where the file does not show it: smit_miccai22, smit_10k, "
        "monai_swinvit, monai_dae, voco, suprem, monai, imagenet",
    )
    add(
        "--prefix",
        metavar="TEXT",
        help="what the names of the encoder's tensors begin with, where a file has several",
    )
    add(
        "--hu",
        metavar="N",
        nargs="+",
        type=float,
        help="LOW HIGH: the HU that became 0 and 1; or LOW HIGH MEAN SD; default: by the source",
    )
    add("--no-hu", action="store_true", help="let images pass as nnU-Net normalises them")
    add(
        "--spacing",
        metavar=("Z", "Y", "X"),
        nargs=3,
        type=float,
        help="mm of the pretraining; default: by the source",
    )
    add(
        "--crop",
        metavar="N",
        nargs="+",
        type=int,
        help="voxels z y x, or y x, of it; default: by the source",
    )
    add("--axes", choices=("xyz", "zyx"), help="order of the axes it saw; default: by the source")
    add(
        "--merging",
        choices=("legacy", "all"),
        help="MONAI before 1.5, or since; default: by the source",
    )
    add(
        "--dims",
        type=int,
        choices=(2, 3),
        help="3: make a 3D encoder of 2D weights; default: as in the file",
    )
    add("--rgb", action="store_true", help="keep red, green and blue, for data of three channels")
    return parser
