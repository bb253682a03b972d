"""What the tests of the engine share: a micro encoder, made crops, and a run on them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, Method
from nnssl.train import batches
from nnssl.train.learning_rate import parameter_groups
from nnssl.train.run import Run, RunConfig

ENCODER = SwinConfig(embed_dim=6, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
CROP = (16, 16, 16)
# Small values for whichever of these fields a method's config has.
SMALL = {
    "prototypes": 32,
    "head_hidden": 16,
    "head_bottleneck": 8,
    "head_out": 8,
    "queue": 4,
    "drop_path": 0.0,
}
CPU = torch.device("cpu")


class SyntheticCrops(Dataset):
    """Like nnssl.data.crops.Crops, without files: sample `index` is smooth noise drawn from `index`
    alone.
    """

    def __init__(self, shape: tuple[int, ...], cases: int = 6) -> None:
        self.shape, self.cases = tuple(shape), cases

    def __len__(self) -> int:
        return self.cases

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(1000 + index)
        coarse = torch.randn(1, 1, *(max(2, size // 4) for size in self.shape), generator=generator)
        mode = "trilinear" if len(self.shape) == 3 else "bilinear"
        crop = torch.nn.functional.interpolate(coarse, self.shape, mode=mode)[0]
        start = torch.tensor([2 + axis for axis in range(len(self.shape))])
        size = start + torch.tensor(self.shape) + 1
        return {
            "parcels": (crop[0] > 0).long() + (crop[0] > 0.7).long(),
            "crop": crop,
            "index": index,
            "scan": index % self.cases,
            "rejected": index % 3,
            "start": start,
            "size": size,
        }


def config(name: str = "smit", **settings):
    """The method's config with small heads, and `settings` on top."""
    known = {field.name for field in fields(METHODS[name].Config)}
    small = {key: value for key, value in SMALL.items() if key in known}
    return METHODS[name].Config(**{**small, **settings})


def method(name: str = "smit", seed: int = 0, spatial_dims: int = 3, **settings) -> Method:
    """A method on the micro encoder, with the weights of `seed`."""
    torch.manual_seed(seed)
    chosen = config(name, **settings)
    encoder = Swin(
        replace(ENCODER, spatial_dims=spatial_dims, drop_path=chosen.drop_path), maskable=True
    )
    return METHODS[name](encoder, chosen).train()


def views(method: Method, batch: int = 2, crop: tuple[int, ...] = CROP, seed: int = 0) -> dict:
    """What `method` looks at for the samples 0, 1, ... of the made crops."""
    return prepare_views(
        method, [SyntheticCrops(method.region(crop))[index] for index in range(batch)], seed
    )


def prepare_views(method: Method, samples: list[dict], seed: int = 0) -> dict:
    """The views of `samples` as the engine gives them to the method."""
    regions = torch.stack([sample["crop"] for sample in samples])
    generators = [batches.generator_for(seed, sample["index"]) for sample in samples]
    starts, sizes = (
        torch.stack([sample[name] for sample in samples]) for name in ("start", "size")
    )
    scans = torch.tensor([sample["scan"] for sample in samples])
    parcels = torch.stack([sample["parcels"] for sample in samples])
    return method.prepare_views(regions, generators, scans, starts, sizes, parcels)


def steps(
    method: Method,
    count: int,
    lr: float = 1e-3,
    batch: int = 2,
    crop: tuple[int, ...] = CROP,
    fixed: bool = False,
) -> list[dict]:
    """`count` plain optimiser steps, on one batch where `fixed`; the losses of each."""
    optimizer = torch.optim.AdamW(parameter_groups(method, 0.05), lr=lr)
    crops, rows = SyntheticCrops(method.region(crop)), []
    for step in range(count):
        indices = [i + (0 if fixed else step * batch) for i in range(batch)]
        out = method(prepare_views(method, [crops[index] for index in indices]))
        optimizer.zero_grad()
        out.losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), method.config.clip_norm)
        optimizer.step()
        method.after_step((step + 1) / count)
        rows.append({name: float(value.detach()) for name, value in out.losses.items()})
    return rows


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_after(run: Run, step: int, action: Callable[[], object] = sigterm) -> None:
    """Let `action` happen right after the update of `step`."""
    update = run.update

    def updated():
        result = update()
        if run.step == step:
            action()
        return result

    run.update = updated


def header(name: str = "smit", crop: tuple[int, ...] = CROP) -> dict:
    """A checkpoint's header as nnssl_pretrain makes it."""
    return {
        "method": name,
        "preset": "micro",
        "crop": list(crop),
        "plan": {
            "name": "made",
            "fingerprint": "0123456789ab",
            "spacing": [3.0, 2.0, 2.0],
            "hu": {"low": -1000.0, "high": 1000.0, "mean": 40.0, "sd": 250.0},
            "cases": 6,
        },
        "versions": {"nnssl": "0", "torch": "0"},
        "created": "2000-01-01",
    }


def run(folder: Path, name: str = "smit", settings: dict | None = None, **options) -> Run:
    """A run on the made crops; `settings` are the method's, `options` are RunConfig's."""
    chosen = {
        "steps": 6,
        "batch_size": 4,
        "log_every": 1,
        "save_every": 100,
        "workers": 0,
        **options,
    }
    instance = method(name, **(settings or {}))
    return Run(
        instance,
        SyntheticCrops(instance.region(CROP)),
        RunConfig(**chosen),
        folder,
        header(name),
        CPU,
    )
