"""The options of `nnssl_embed`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import address, limits

if TYPE_CHECKING:
    from nnssl.embed.pooling import Window

STRIDES = "2, 4, 8, 16 or 32"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nnssl_embed",
        description="Features of scans from a pretrained encoder: for each scan the means of its "
        "five maps over the body, in one table; with --dense a map in full, with --masks means "
        "by label. Scans are prepared as for the pretraining.",
        epilog="Stopped, the same line continues where it was.",
    )
    add = made.add_argument
    add(
        "-c",
        dest="checkpoint",
        metavar="CHECKPOINT",
        type=address.named,
        help="a checkpoint_final.pth, hf://owner/repo/file or https://...; default: "
        "$nnssl_checkpoint or the only one",
    )
    add(
        "-i",
        dest="sources",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        required=True,
        help="folders of scans, searched at any depth: NIfTI, NRRD, MHA, MHD, DICOM",
    )
    add(
        "-o",
        dest="output",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="a new folder, or one of the same line before",
    )
    add(
        "--masks",
        metavar="FOLDER",
        type=Path,
        help="label files of the scans' names (or without _0000), for means by label",
    )
    add(
        "--dense",
        metavar="STRIDE",
        type=int,
        help=f"also write the map whose tokens are so many voxels apart: {STRIDES}",
    )
    add("--nifti", action="store_true", help="maps as .nii.gz instead of .npz")
    add(
        "--window",
        nargs="+",
        metavar="N",
        help="Z Y X in voxels, or whole; default: whole up to some 4 million voxels",
    )
    add(
        "--spacing",
        metavar=("Z", "Y", "X"),
        nargs=3,
        type=float,
        help="mm, for weights whose own is unknown",
    )
    add(
        "--picture",
        nargs="?",
        const="thumbnails",
        choices=("thumbnails", "names"),
        help="also draw neighbours.png and projection.png, coloured by folder; names: no scan is "
        "shown",
    )
    add(
        "-np",
        dest="num_processes",
        metavar="N",
        type=int,
        default=min(4, limits.cores()),
        help="processes that read and resample; default: %(default)s",
    )
    add(
        "-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu"
    )
    return made


def options(args: argparse.Namespace) -> dict:
    """Of `nnssl.embed.run.Options`. Raises ValueError for a window that is none."""
    given = vars(args)
    given["window"] = _window(given["window"])
    given["spacing"] = tuple(given["spacing"]) if given["spacing"] else None
    if given["nifti"] and not given["dense"]:
        raise ValueError("--nifti is for the maps of --dense STRIDE: add it")
    return given


def _window(words: list[str] | None) -> Window:
    if words is None:
        return None
    if words == ["whole"]:
        return "whole"
    if len(words) == 3 and all(word.isdigit() and int(word) > 0 for word in words):
        return tuple(map(int, words))
    raise ValueError(
        f"--window takes three positive numbers Z Y X, or whole; got {' '.join(words)}"
    )
