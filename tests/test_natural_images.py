"""The study's start from natural images: a folder of small pictures becomes a checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from nnssl import checkpoint
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.study.report.write import write

STUDIES = Path(__file__).resolve().parents[1] / "documentation" / "studies"


def test_an_encoder_learns_classes_and_becomes_a_checkpoint(tmp_path):
    """Of bright squares in two sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for name, side in (("large", 24), ("small", 6)):
            (folder := tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 80, (32, 32), dtype=np.uint8)
                low = (32 - side) // 2
                pixels[low : low + side, low : low + side] += 150
                Image.fromarray(pixels).save(folder / f"{k}.png")
    to = tmp_path / "natural.pth"
    command = [sys.executable, str(STUDIES / "natural_images.py"), str(tmp_path), str(to)]
    subprocess.run([*command, "--steps", "40"], check=True, capture_output=True)
    loaded = checkpoint.load(to)
    encoder = Swin(preset("tiny", 2))
    before = encoder.patch_embed.proj.weight.detach().clone()
    checkpoint.transfer(loaded, encoder)
    assert not torch.equal(encoder.patch_embed.proj.weight, before)
    assert loaded.header["plan"]["cases"] == 80
    assert loaded.header["metrics"]["accuracy"] > 0.8


def test_the_page_says_what_the_results_say(tmp_path):
    """The differences to the random start, in points with their intervals."""
    write(STUDIES / "natural_results.jsonl", tmp_path)
    rows = pd.read_csv(tmp_path / "tables" / "comparisons.csv").query("measure == 'Dice'")
    page = (STUDIES / "natural.md").read_text(encoding="utf-8")
    points = rows[["difference", "difference low", "difference high"]] * 100
    assert len(points) == 8
    for difference, low, high in points.itertuples(index=False):
        assert f"{difference:.1f} [{low:.1f}, {high:.1f}]" in page


def test_the_methods_are_reported_as_their_results_say(tmp_path):
    write(STUDIES / "methods_results.jsonl", tmp_path)
    rows = pd.read_csv(tmp_path / "tables" / "comparisons.csv").query("measure == 'Dice'")
    page = (STUDIES.parent / "worth_it.md").read_text(encoding="utf-8")
    points = rows[["difference", "difference low", "difference high"]] * 100
    assert len(points) == 3
    for difference, low, high in points.itertuples(index=False):
        rounded = re.sub(r"[+-](0\.0)$", r"\1", f"{difference:+.1f}")
        assert f"{rounded} points** [{low:.1f}, {high:.1f}]" in page
