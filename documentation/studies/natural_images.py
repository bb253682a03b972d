"""An encoder that was trained on natural images with their labels, in place of ImageNet's.

    python natural_images.py IMAGES natural.pth

IMAGES has the folders train/CLASS and test/CLASS of small JPEG or PNG files, such as CIFAR-10's.
They become grey, each minus its mean and divided by its standard deviation, as nnU-Net normalises
MRI. The file is a checkpoint like any other: `start: checkpoint` of a study takes it, and
`nnssl_convert` makes the released `natural_tiny` of it. The network is `tiny` in 2D, so that it
differs from a random start in nothing but its weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

import nnssl
from nnssl import checkpoint
from nnssl.cpu.products import by_onednn
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import Swin
from nnssl.host_memory import keep_freed_memory

SIDE = 32  # pixels that the encoder sees
BATCH = 64
WARMUP = 0.05  # of the steps
RATE = 1e-3


def images_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Grey values of all images [N 1 H W], normalised one by one, and their classes [N]."""
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    paths = [
        (path, k) for k, name in enumerate(classes) for path in sorted((folder / name).iterdir())
    ]
    grey = np.stack([np.asarray(Image.open(path).convert("L"), np.float32) for path, _ in paths])
    grey = (grey - grey.mean((1, 2), keepdims=True)) / (grey.std((1, 2), keepdims=True) + 1e-8)
    return torch.from_numpy(grey)[:, None], torch.tensor([k for _, k in paths])


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each, of half its area or more, mirrored or not, at SIDE pixels."""
    count = len(images)
    scale = torch.empty(count).uniform_(0.5**0.5, 1, generator=generator)
    shift = torch.empty(count, 2).uniform_(-1, 1, generator=generator) * (1 - scale)[:, None]
    mirror = torch.randint(2, (count,), generator=generator) * 2 - 1
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(matrix, [count, 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Classifier(nn.Module):
    """The encoder, and one linear layer on the mean of its last map."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = Swin(preset("tiny", 2))
        self.head = nn.LazyLinear(classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.encoder(images)[-1].mean((2, 3))
        return self.head(F.layer_norm(pooled, pooled.shape[1:]))


def train(images: Tensor, labels: Tensor, steps: int, seed: int) -> Classifier:
    """The learning rate follows a cosine after its warm-up."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(int(labels.max()) + 1)
    model(torch.zeros(2, 1, SIDE, SIDE))
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    for step in trange(steps, mininterval=10):
        warm, cosine = min(1, step / (WARMUP * steps)), (1 + np.cos(np.pi * step / steps)) / 2
        optimiser.param_groups[0]["lr"] = RATE * warm * cosine
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        logits = model(varied(images[batch], generator))
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimiser.step()
    return model


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    model.eval()
    batches = zip(images.split(500), labels.split(500), strict=True)
    hits = [
        (model(F.interpolate(x, size=SIDE, mode="bilinear")).argmax(1) == y).sum()
        for x, y in batches
    ]
    return float(sum(hits)) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="natural images", help="of the images, for the file")
    parser.add_argument("--cite", action="append", default=[], help="a citation of the images")
    args = parser.parse_args()
    keep_freed_memory()
    with by_onednn(torch.device("cpu")):
        images, labels = images_of(args.images / "train")
        model = train(images, labels, args.steps, args.seed)
    hits = accuracy(model, *images_of(args.images / "test"))
    print(f"{args.steps} steps of {BATCH}: {hits:.1%} of the test images are classified right")
    header = {
        "method": "natural-images",
        "preset": "tiny",
        "crop": [SIDE, SIDE],
        "supervised": True,
        "plan": {
            "name": args.name,
            "cases": len(images),
            "unit": "images",
            "spacing": None,
            "hu": None,
        },
        "step": args.steps,
        "run": {"steps": args.steps, "batch_size": BATCH, "seed": args.seed},
        "metrics": {"accuracy": hits},
        "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
        "created": time.strftime("%Y-%m-%d"),
    }
    checkpoint.write(args.to, checkpoint.pack(model.encoder, header, args.cite))


if __name__ == "__main__":
    main()
