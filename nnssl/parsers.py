"""What the larger commands take: what each is for, and the dataclass that its options are of.

Made without importing PyTorch.
"""

from __future__ import annotations

import argparse

from nnssl import options
from nnssl.convert.request import Request as ConvertRequest
from nnssl.embed.options import Options as EmbedOptions
from nnssl.export import Request as ExportRequest
from nnssl.plans.request import Request as PlanRequest
from nnssl.recipe import Recipe
from nnssl.train.options import CommandOptions


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
    options.add(parser, PlanRequest)
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
