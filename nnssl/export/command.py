"""The words of `nnssl_export`; `nnssl.cli` calls it."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnssl.export import FORMATS
from nnssl.types import FINAL


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nnssl_export",
        description="One fold of a trained nnU-Net model as ONNX and as a program of torch.export, "
        "for its patch size and any number of patches at a time, with model.json: spacing, "
        "normalisation, axes, labels. Each file is compared with PyTorch's own logits before it "
        "is kept. Resampling, normalisation and the sliding window are not in the files.",
    )
    add = made.add_argument
    add("-m", dest="model", metavar="FOLDER", type=Path, required=True,
        help="$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")  # fmt: skip
    add("-f", dest="fold", metavar="FOLD", default="0", help="0 to 4, or all; default: %(default)s")
    add("-o", dest="output", metavar="FOLDER", type=Path, required=True,
        help="model.onnx, model.pt2 and model.json are written here")  # fmt: skip
    add("-chk", dest="checkpoint", metavar="FILE", default=FINAL, help="default: %(default)s")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    return made
