"""A checkpoint as a file of safetensors: tensors, and beside them the rest as JSON.

Its metadata has one entry, "nnssl": format_version, header, citations, and the order of the
tensors, which safetensors does not keep. One, since several would be in any order. From it the file
of PyTorch can be written again, the same bit for bit. `nnssl_adaptation_plan` follows from the
header and is not stored.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from nnssl import files
from nnssl.address import MODEL
from nnssl.checkpoint.plain import CheckpointError

SAFE = ".safetensors"
CONFIG, LIBRARY = "config.json", "nnssl-swin"
ENTRY = "nnssl"  # of the metadata
STORED = ("format_version", "header", "citations")


def is_safe(path: Path) -> bool:
    """Whether a file is one of safetensors, by its first bytes: a cache may have taken its ending.

    Eight bytes of length, then JSON of that length. Read as a length, the first bytes of archives
    and pickles of PyTorch are far more than any file has. Bytes of the length say nothing by
    themselves: it may well end in 0x80, with which a pickle begins.
    """
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length <= path.stat().st_size - 8


def require_hash_of_config(path: Path) -> None:
    """Raises CheckpointError where a folder's config.json was written with other weights.

    The format has no checksum: a flipped bit would be a wrong weight.
    """
    config = path.parent / CONFIG
    if path.name != MODEL or not files.is_file(config):
        return
    recorded = _recorded_hash(config)
    if recorded is not None and recorded != files.sha256(path):
        raise CheckpointError(
            f"{path} is damaged or changed: its sha256 is not the one in {config}. Copy the folder "
            f"again from its source; if you changed the weights, remove {CONFIG}"
        )


def _recorded_hash(config: Path) -> object:
    """None where config.json is not one of ours, or cannot be read."""
    try:
        said: object = files.read_json(config)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(said, dict) and said.get("library_name") == LIBRARY
    return said.get("sha256") if is_ours else None


def write_safe(path: Path, content: dict) -> None:
    """Whole or not at all; the same content gives the same bytes. Training state is left out."""
    from safetensors.torch import save

    weights, metadata = content["network_weights"], {ENTRY: _metadata_entry(content)}
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    with files.atomic(path) as temporary:
        # `save_file` has an error of its own where the disk is full
        temporary.write_bytes(save(tensors, metadata))


def _metadata_entry(content: dict) -> str:
    entry = {key: content[key] for key in STORED} | {"order": list(content["network_weights"])}
    return json.dumps(entry, allow_nan=False)


def read_safe(path: Path) -> dict:
    """The content with an empty `nnssl_adaptation_plan`, unchecked. Raises CheckpointError."""
    entry, weights = _entry_and_tensors(path)
    stored = _ours(entry, path)
    return {
        "format_version": stored["format_version"],
        "header": stored["header"],
        "network_weights": _in_order(weights, stored["order"], path),
        "nnssl_adaptation_plan": {},  # is made of the header, once that is checked
        "citations": stored["citations"],
    }


def _in_order(weights: dict[str, Tensor], order: object, path: Path) -> dict[str, Tensor]:
    """The tensors as they were written; raises CheckpointError where `order` names others."""
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(weights):
        raise CheckpointError(f"{path} is damaged: its tensor names do not match its tensors")
    return {name: weights[name] for name in order}


def _ours(entry: object, path: Path) -> dict:
    """The entry of the metadata, if `write_safe` has written it; raises CheckpointError."""
    if isinstance(entry, dict) and entry.keys() >= {*STORED, "order"}:
        return entry
    raise CheckpointError(
        f"{path} is a safetensors file, but not one of nnssl_convert --hub; to convert "
        f"third-party weights, type: nnssl_convert {files.quoted(path)} -o CHECKPOINT"
    )


def _entry_and_tensors(path: Path) -> tuple[object, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            entry = json.loads((file.metadata() or {}).get(ENTRY, "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or damaged ({error}). Copy it "
            "again from where it was made"
        ) from error
    return entry, weights


def names_ours(path: Path) -> bool:
    """Whether a file of safetensors says that it is a checkpoint of this package.

    Raises SafetensorError.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return ENTRY in (file.metadata() or {})
