"""The options of `nnssl_plan`."""

from __future__ import annotations

import argparse

from nnssl import address, weights


def plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_plan",
        description="Plans for nnU-Net that name our network, the pretrained checkpoint with its "
        "hash, and the recipe. Patch and batch size are planned for this network's memory. They "
        "share the data of nnU-Net's own plans where both would preprocess the same. Train with: "
        "nnUNetv2_train ... -p NAME.",
    )
    add = parser.add_argument
    add(
        "-d",
        dest="dataset",
        metavar="ID",
        required=True,
        help="dataset ID or name, as nnU-Net's -d",
    )
    add(
        "-c",
        dest="checkpoint",
        metavar="CHECKPOINT",
        type=address.named,
        help="checkpoint_final.pth of nnssl_pretrain, hf://owner/repo/file, https://..., or a name "
        f"of released weights: {weights.NAMES}; default: $nnssl_checkpoint, the only one, or "
        f"{weights.DEFAULT}",
    )
    add(
        "-a",
        dest="preset",
        metavar="PRESET",
        help="no checkpoint but an encoder of this size, for SwinScratchTrainer",
    )
    add(
        "-gpu_memory_target",
        metavar="GB",
        type=float,
        help="GPU memory that a training may take; default: 8",
    )
    add(
        "--spacing",
        nargs="+",
        metavar="MM",
        default=["dataset"],
        help="dataset (nnU-Net's choice, default), pretraining (the checkpoint's), or Z Y X in mm",
    )
    add(
        "-p",
        dest="base",
        metavar="PLANS",
        help="take spacing, patch and batch size from these plans, such as nnUNetPlans",
    )
    add("--name", default="nnUNetSwinPlans", help="name of the new plans; default: %(default)s")
    add(
        "--decoder",
        help="swinunetr, light or nnunet; default: the one that was pretrained, or swinunetr",
    )
    add("--patch", nargs="+", type=int, metavar="N", help="patch size Z Y X, or Y X for 2d")
    add("--batch-size", type=int, metavar="B")
    add("--epochs", type=int, metavar="N")
    add("--iterations", type=int, metavar="N", help="an epoch")
    add(
        "--val-iterations", type=int, metavar="N", help="an epoch; default: a fifth of --iterations"
    )
    add(
        "--foreground",
        type=float,
        metavar="SHARE",
        help="of the patches drawn around a labelled voxel; default: nnU-Net's 0.33",
    )
    add(
        "--no-mirror",
        dest="mirror",
        action="store_false",
        default=None,
        help="no reflections in augmentation and prediction, for labels that tell left from right",
    )
    add("--lr", type=float, help="AdamW's learning rate of the decoder")
    add(
        "--head-lr",
        type=float,
        help="learning rate of the heads to logits over the decoder's; default: 30",
    )
    add(
        "--encoder-lr",
        type=float,
        help="of the encoder's last block, over the decoder's; default: 0.3, from a random start 1",
    )
    add(
        "--layer-decay",
        type=float,
        help="learning rate of an encoder block over that of the next one",
    )
    add(
        "--warmup-iterations", type=int, metavar="N", help="default: a twentieth of all, 50 to 2500"
    )
    add("--warmup-epochs", type=float, metavar="N", help="the same in epochs")
    add("--drop-path", type=float, help="of the encoder; default: 0.1, below 5000 iterations 0")
    add(
        "--ema",
        type=float,
        help="of the weights, kept in a step; 0: none; default: 0.99 to 0.999 by iterations",
    )
    add(
        "--unfreeze-every",
        type=float,
        metavar="N",
        help="for SwinGradualTrainer: epochs from one stage to the next; default: a twentieth of "
        "them",
    )
    add("--lora-rank", type=int, metavar="N", help="for SwinLoRATrainer; default: 8")
    add("--lora-alpha", type=float, metavar="N", help="its scale, over the rank; default: 16")
    add("--weight-decay", type=float)
    add("--schedule", help="poly or cosine")
    return parser


def spacing_of(words: list[str]) -> str | tuple[float, ...]:
    """`--spacing dataset`, `--spacing pretraining` or `--spacing Z Y X`."""
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        return " ".join(words)
