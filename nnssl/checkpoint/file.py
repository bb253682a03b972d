"""Checkpoints on disk: packed, written, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from nnssl import address, files, weights
from nnssl.checkpoint.decoder_header import DECODER, without_heads
from nnssl.checkpoint.header import FORMAT_VERSION, PREFIX, problem
from nnssl.checkpoint.plain import CheckpointError, read_plain
from nnssl.checkpoint.safe import SAFE, is_safe, read_safe, require_hash_of_config, write_safe
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.hu import HUPolicy
from nnssl.types import NETWORK_CLASS, Shape, Spacing

FULL = 4  # bytes of a weight in single precision


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read; the docstring of `nnssl.checkpoint` describes the file."""

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
        """None for weights that were not trained on HU: images keep nnU-Net's normalisation."""
        return HUPolicy.from_dict(self.header["plan"]["hu"]) if self.header["plan"]["hu"] else None

    @property
    def spacing(self) -> Spacing | None:
        """None where it is unknown."""
        return tuple(self.header["plan"]["spacing"]) if self.header["plan"]["spacing"] else None

    @property
    def decoder(self) -> dict | None:
        """Name and options of the fine-tuning decoder that was pretrained as well, if any."""
        return self.header.get("decoder")

    @property
    def has_seen_labels(self) -> bool:
        """Whether its encoder was trained with labels, or started from one that was."""
        start = self.header.get("start", {})
        return bool(self.header.get("supervised") or start.get("supervised"))

    def as_start(self, named: str) -> dict:
        """The header's entry `start` for an encoder that starts from this one; `named`: how the
        user or the file is to name it. Of an address, without what may be secret.
        """
        return {
            "checkpoint": address.public(named),
            "sha256": self.sha256,
            "method": self.method,
            "supervised": self.has_seen_labels,
        }

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {
            name.removeprefix(prefix): w
            for name, w in self.weights.items()
            if name.startswith(prefix)
        }

    def parameters(self, prefix: str = "") -> int:
        """How many numbers the tensors hold whose names begin with `prefix`."""
        return sum(w.numel() for name, w in self.weights.items() if name.startswith(prefix))

    @property
    def crop(self) -> Shape:
        return tuple(self.header["crop"])


def pack(
    encoder: Swin, header: dict, citations: list[str], decoder: nn.Module | None = None
) -> dict:
    """The content of a checkpoint file.

    header:  needs the keys method, plan (with hu and spacing) and crop; decoder where there is one.
    decoder: of the fine-tuning network, where it was pretrained too; its heads are left out.
    Raises CheckpointError for weights that are not finite and a header that `load` would refuse.
    """
    weights = _copies_of(encoder, decoder)
    _require_finite(weights)
    header = _as_json({**header, "encoder": encoder.config.to_dict()})
    content = {
        "format_version": FORMAT_VERSION,
        "header": header,
        "network_weights": weights,
        "nnssl_adaptation_plan": _adaptation_plan(header),
        "citations": list(citations),
    }
    if why := problem(content):
        raise CheckpointError(f"nothing was written: the content {why}")
    return content


def _as_json(header: dict) -> dict:
    """As it comes back from a file: tuples are lists. Raises ValueError for NaN."""
    return json.loads(json.dumps(header, allow_nan=False))


def _copies_of(encoder: Swin, decoder: nn.Module | None) -> dict[str, Tensor]:
    weights = _copied(encoder.state_dict(), PREFIX)
    if decoder is not None:
        weights |= _copied(without_heads(decoder.state_dict()), DECODER)
    return weights


def _copied(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """On the CPU, their names with a prefix."""
    return {prefix + name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


def _require_finite(weights: Mapping[str, Tensor]) -> None:
    if broken := _not_finite(weights):
        raise CheckpointError(
            f"{len(broken)} tensors hold NaN or infinite values, first {broken[0]}; nothing was "
            "written. A pretraining can start again from its last good encoder, with a lower "
            "learning rate: --from checkpoint_latest.pth -o FOLDER --set lr=..."
        )


def write(path: Path | str, content: dict) -> None:
    """Whole or not at all: written under a temporary name, then moved.

    The same content gives the same bytes: given a path, PyTorch would put its random name into the
    file. A path that ends with .safetensors becomes a file of safetensors, without training state.
    """
    if Path(path).suffix == SAFE:
        write_safe(Path(path), content)
        return
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read(path: Path | str) -> dict:
    """The whole content of a file (or `nnssl.address`), training state included. Raises
    FileNotFoundError, AddressError or CheckpointError.
    """
    content = _checked(_existing_file(path))
    stored = content["network_weights"]
    content["network_weights"] = {name: _at_least_single(w) for name, w in stored.items()}
    return content


def _existing_file(path: Path | str) -> Path:
    """The file at a path or an address; raises FileNotFoundError."""
    path = address.local(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; pretrain one with nnssl_pretrain -m smit -i FOLDER, or "
            f"name one shipped with this package: {weights.NAMES}"
        )
    return path


def _checked(path: Path) -> dict:
    """The content as the file holds it; raises CheckpointError."""
    if is_safe(path):
        content = _without_problem(read_safe(path), path)
        require_hash_of_config(path)
        return content | {"nnssl_adaptation_plan": _adaptation_plan(content["header"])}
    return _without_problem(read_plain(path), path)


def _without_problem(content: object, path: Path) -> dict:
    if why := problem(content):
        raise CheckpointError(f"{path} {why}")
    return cast("dict", content)  # or it had a problem


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < FULL else tensor


def halved(content: dict) -> dict:
    """`content` with weights of two bytes each; they are read as single precision again.

    Raises CheckpointError for a weight that has no such number.
    """
    half = {name: tensor.half() for name, tensor in content["network_weights"].items()}
    if broken := _not_finite(half):
        raise CheckpointError(
            f"{broken[0]} holds a value outside half precision ({torch.finfo(torch.half).max:g}): "
            "leave out --half"
        )
    return content | {"network_weights": half}


def load(path: Path | str) -> Checkpoint:
    """Read and check a checkpoint, of a path or an address (`nnssl.address`). Raises as `read`."""
    path = address.local(path)
    content = read(path)
    return Checkpoint(
        path=path,
        sha256=files.sha256(path),
        header=content["header"],
        weights=content["network_weights"],
        adaptation_plan=_adaptation_plan(content["header"]),
        citations=content["citations"],
    )


def _adaptation_plan(header: dict) -> dict:
    """What upstream's `nnUNetv2_preprocess_like_nnssl` reads
    (nnunetv2/experiment_planning/like_nnssl.py).
    """
    config = SwinConfig.from_dict(header["encoder"])  # what is left out is the default
    return {
        "architecture_plans": {
            "arch_class_name": NETWORK_CLASS,
            "arch_kwargs": {"encoder": header["encoder"]},
            "arch_kwargs_requiring_import": [],
        },
        "pretrain_plan": {"configurations": _configuration(header, config.spatial_dims)},
        "pretrain_num_input_channels": config.in_channels,
        "recommended_downstream_patchsize": header["crop"],
        "key_to_encoder": "encoder",
        "key_to_stem": "encoder.patch_embed",
        "keys_to_in_proj": ["encoder.patch_embed.proj"],
        "key_to_lpe": None,
    }


def _configuration(header: dict, dims: int) -> dict[str, dict]:
    """By its name, that in which the encoder was pretrained."""
    spacing = header["plan"]["spacing"]
    spacing = spacing and spacing[-dims:]  # None where it is unknown
    return {f"{dims}d_pretraining": {"spacing": spacing, "patch_size": header["crop"]}}
