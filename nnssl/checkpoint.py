"""The hand-over from pretraining to nnU-Net: tensors and a JSON-able header, loaded strictly or not at all.

    {"format_version", "header", "network_weights": {"encoder.…": tensor}, "nnssl_adaptation_plan", "citations"}

A file holds tensors and plain Python types only and is read with `weights_only=True`, so that nothing in it is
executed. `checkpoint_latest.pth` adds "training_state", which only the training loop reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnssl import files
from nnssl.encoder.adapt import STEM, adapt
from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.types import NETWORK_CLASS, HUPolicy, Shape, Spacing

FORMAT_VERSION = 1
KEYS = {"format_version", "header", "network_weights", "nnssl_adaptation_plan", "citations"}
HEADER = {"method", "plan", "crop", "encoder"}  # what using the weights needs; the rest informs
PREFIX = "encoder."
PRETRAINING_ONLY = {"mask_token": "pretraining only: nothing is hidden when fine-tuning"}


class CheckpointError(ValueError):
    """The file is not a checkpoint of ours, is damaged, or holds what must not become weights."""


class TransferError(ValueError):
    """The weights do not fit the encoder; nothing was loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read; see the module's docstring for the file."""

    path: Path
    sha256: str
    header: dict
    weights: dict[str, Tensor]
    adaptation_plan: dict
    citations: list

    @property
    def method(self) -> str:
        return self.header["method"]

    @property
    def encoder_config(self) -> SwinConfig:
        return SwinConfig.from_dict(self.header["encoder"])

    @property
    def hu(self) -> HUPolicy | None:
        """None for weights that were not made on HU: images pass as nnU-Net normalises them."""
        return HUPolicy(**self.header["plan"]["hu"]) if self.header["plan"]["hu"] else None

    @property
    def spacing(self) -> Spacing | None:
        """None where it is unknown."""
        return tuple(self.header["plan"]["spacing"]) if self.header["plan"]["spacing"] else None

    @property
    def crop(self) -> Shape:
        return tuple(self.header["crop"])


def pack(encoder: Swin, header: dict, citations: list[str]) -> dict:
    """The content of a checkpoint file. `header` needs the keys method, plan (with hu and spacing), crop.

    Raises CheckpointError when a weight is not finite: such weights never reach a file.
    """
    weights = {PREFIX + name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors hold NaN or infinite values, first {broken[0]}; nothing was written. "
            "Continue from the last checkpoint with a lower learning rate (--set lr=...)"
        )
    header = json.loads(json.dumps({**header, "encoder": encoder.config.to_dict()}, allow_nan=False))
    return {
        "format_version": FORMAT_VERSION,
        "header": header,
        "network_weights": weights,
        "nnssl_adaptation_plan": _adaptation_plan(header),
        "citations": list(citations),
    }


def write(path: Path | str, content: dict) -> None:
    """Whole or not at all: written under a temporary name, then moved."""
    with files.atomic(path) as temporary:
        torch.save(content, temporary)


def read(path: Path | str) -> dict:
    """The whole content of a file, training state included. Raises FileNotFoundError or CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; pretrain one with: nnssl_pretrain -m smit -i FOLDER")
    content = read_plain(path)
    _check(path, content)
    return content


def read_plain(path: Path) -> object:
    """What a file of PyTorch holds, if that is tensors and plain values alone: nothing in it is executed.

    Raises CheckpointError.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the reader of pickles raises on noise has no common class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated, or holds more than tensors and plain "
            f"values ({first})"
        ) from error


def load(path: Path | str) -> Checkpoint:
    """Read and check a checkpoint. Raises FileNotFoundError or CheckpointError."""
    path = Path(path)
    content = read(path)
    return Checkpoint(
        path=path,
        sha256=files.sha256(path),
        header=content["header"],
        weights=content["network_weights"],
        adaptation_plan=content["nnssl_adaptation_plan"],
        citations=content["citations"],
    )


def describe(checkpoint: Checkpoint) -> str:
    """What `nnssl_inspect` prints: everything a user of the weights must know."""
    header, plan = checkpoint.header, checkpoint.header["plan"]
    parameters = sum(tensor.numel() for tensor in checkpoint.weights.values())
    lines = {
        "file": f"{checkpoint.path} ({checkpoint.path.stat().st_size / 2**20:.1f} MiB)",
        "sha256": checkpoint.sha256,
        "method": header["method"],
        "encoder": f"{header['preset']}: {len(checkpoint.weights)} tensors, {parameters / 1e6:.2f} M parameters",
        "": _pairs(header["encoder"]),
        "spacing": f"{_by(plan['spacing'])} mm (z y x)" if plan["spacing"] else "unknown",
        "crop": f"{_by(header['crop'])} voxels ({'z y x'[-2 * len(header['crop']) + 1 :]})",
        "HU policy": describe_hu(checkpoint.hu),
        **(_foreign(header["foreign"]) if "foreign" in header else _training(header)),
        "written by": _pairs(header["versions"]) + f", {header['created']}",
        "cite": "; ".join(checkpoint.citations),
    }
    return "\n".join(f"{name:11s}{text}" for name, text in lines.items())


def describe_hu(hu: HUPolicy | None) -> str:
    if hu is None:
        return "none: images pass as nnU-Net normalises them"
    return hu.describe()


def _training(header: dict) -> dict[str, str]:
    plan, run = header["plan"], header["run"]
    return {
        "data": f"{plan['name']}, {plan['cases']} scans, plan {plan['fingerprint']}",
        "trained": f"step {header['step']} of {run['steps']}, {run['batch_size']} scans a step, seed {run['seed']}",
        "settings": _pairs(header["method_config"]),
        "metrics": _pairs({name: v for name, v in header["metrics"].items() if not name.startswith("probe_")}),
        **({"probe": _probe(header["probe"])} if "probe" in header else {}),
    }


def _foreign(origin: dict) -> dict[str, str]:
    """Of weights that `nnssl_convert` took from another project's file."""
    return {
        "converted": f"{origin['file']}, sha256 {origin['sha256']}",
        "source": f"{origin['title']}; {origin['licence']}",
        "loaded": f"{origin['loaded']} of {origin['total']} tensors from the file",
        "adapted": "; ".join(origin["adapted"]) or "nothing",
        "left out": "; ".join(f"{count} {reason}" for reason, count in origin["left_out"].items()) or "nothing",
    }


def _probe(probe: dict) -> str:
    labels = {name.removeprefix("probe_"): v for name, v in probe.items() if name.startswith("probe_")}
    return (
        f"on {len(probe['cases'])} cases of {probe['dataset']} at step {probe['step']}: {_pairs(labels)} (mean); "
        f"best {probe['best']:.4g} at step {probe['best_step']}"
    )


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _pairs(values: dict) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return ", ".join(shown)


@dataclass(frozen=True)
class Transfer:
    """What `transfer` did: `matched` of the encoder's `total` tensors were set; `explained` tells of the rest."""

    matched: int
    total: int
    explained: dict[str, str]


def transfer(checkpoint: Checkpoint, encoder: Swin, labels: int = 0) -> Transfer:
    """Load every encoder tensor from `checkpoint`, in place, or raise TransferError and load nothing.

    Tensors are matched by name and shape. A stem for one channel is inflated to any number C of image channels:
    repeated, and divided by C, so that C equal channels give what one gave. One for several channels fits only as
    many. The last `labels` of `encoder`'s input channels are a cascade's: the pretraining knew nothing of them, and
    their weights start at zero, so that at first the encoder sees what it saw there. Where `encoder` leaves an axis
    as it is that the checkpoint's halves, patch embedding and merges are adapted (`nnssl.encoder.adapt`).
    """
    given = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint.weights.items()}
    wanted = dict(encoder.named_parameters())
    given, explained = adapt(given, checkpoint.encoder_config, encoder.config)
    for name, reason in PRETRAINING_ONLY.items():
        if name in given and name not in wanted:
            del given[name]
            explained[name] = reason
    if STEM in given and STEM in wanted and given[STEM].shape[1] != wanted[STEM].shape[1]:
        given[STEM], done = _inflate(checkpoint, given[STEM], wanted[STEM].shape[1] - labels, labels)
        explained[STEM] = ", ".join(filter(None, [explained.get(STEM), *done]))
    _demand_match(checkpoint, given, wanted)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(given[name])
    return Transfer(matched=len(wanted), total=len(wanted), explained=explained)


def _inflate(checkpoint: Checkpoint, stem: Tensor, images: int, labels: int) -> tuple[Tensor, list[str]]:
    """`stem` for `images` channels and `labels`, and what was done to it."""
    given = stem.shape[1]
    if given not in (1, images):
        raise TransferError(
            f"{checkpoint.path} was pretrained on {given} channels, this image has {images}; nothing was loaded. A "
            "first layer for one channel is inflated to any number of them, one for several fits only as many. "
            "Pretrain on one channel, as nnssl_pretrain does, convert without --rgb, or train from a random start: "
            "-tr SwinScratchTrainer"
        )
    done = []
    if given != images:
        stem = stem.repeat_interleave(images, dim=1) / images
        done.append(f"inflated from 1 to {images} input channels")
    if labels:
        stem = torch.cat([stem, torch.zeros_like(stem[:, :1]).repeat_interleave(labels, dim=1)], dim=1)
        done.append(f"{labels} channels of labels start at zero")
    return stem, done


def differences(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """A line for every tensor that is missing, unexpected or of another shape; the first twenty; "" for none."""
    problems = [f"missing in the file: {name}" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"unexpected in the file: {name}" for name in sorted(given.keys() - wanted.keys())]
    problems += [
        f"other shape: {name} is {tuple(given[name].shape)} in the file, {tuple(wanted[name].shape)} in the network"
        for name in sorted(given.keys() & wanted.keys())
        if given[name].shape != wanted[name].shape
    ]
    return "\n  ".join(problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else []))


def _demand_match(checkpoint: Checkpoint, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    if shown := differences(given, wanted):
        raise TransferError(
            f"{checkpoint.path} does not fit the network; nothing was loaded:\n  {shown}\n"
            f"The checkpoint's encoder is {checkpoint.header['encoder']}"
        )


def _check(path: Path, content: object) -> None:
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        found = sorted(map(str, content))[:10] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of nnssl_pretrain: it holds {found}, expected {sorted(KEYS)}"
        )
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content['format_version']}, this installation reads {FORMAT_VERSION}; "
            "install the version that wrote it, or a newer one"
        )
    header, weights = content["header"], content["network_weights"]
    if not isinstance(header, dict) or not header.keys() >= HEADER:
        raise CheckpointError(f"{path} has a header without some of {sorted(HEADER)}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path} holds network_weights that are not tensors by name")
    stray = [name for name in weights if not name.startswith(PREFIX)]
    if stray:
        raise CheckpointError(f"{path} holds weights that are not the encoder's: {stray[:5]}")


def _adaptation_plan(header: dict) -> dict:
    """What upstream's `nnUNetv2_preprocess_like_nnssl` reads (nnunetv2/experiment_planning/like_nnssl.py)."""
    dims = header["encoder"]["spatial_dims"]
    spacing = header["plan"]["spacing"] and header["plan"]["spacing"][-dims:]  # None where it is unknown
    configuration = {"spacing": spacing, "patch_size": header["crop"]}
    return {
        "architecture_plans": {
            "arch_class_name": NETWORK_CLASS,
            "arch_kwargs": {"encoder": header["encoder"]},
            "arch_kwargs_requiring_import": [],
        },
        "pretrain_plan": {"configurations": {f"{dims}d_pretraining": configuration}},
        "pretrain_num_input_channels": header["encoder"]["in_channels"],
        "recommended_downstream_patchsize": header["crop"],
        "key_to_encoder": "encoder",
        "key_to_stem": "encoder.patch_embed",
        "keys_to_in_proj": ["encoder.patch_embed.proj"],
        "key_to_lpe": None,
    }
