"""Selects the checkpoint that fine-tuning starts from.

The first match wins: `pretrain_info.checkpoint_path` in the plans, the variable `nnssl_checkpoint`,
the only `checkpoint_final.pth` under `$nnUNet_results/nnssl/`, the weights that came with the
package (`nnssl.weights.default`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import address, files, weights
from nnssl.types import FINAL, RESULTS

if TYPE_CHECKING:
    from nnssl.checkpoint import Checkpoint

VARIABLE = "nnssl_checkpoint"
REMEDY = f"""Choose one in one of these ways:
  export nnssl_checkpoint=PATH_TO_CHECKPOINT                  for every command
  nnssl_plan -d DATASET -c PATH_TO_CHECKPOINT --name NAME     and train with -p NAME
  nnssl_embed -c PATH_TO_CHECKPOINT ...                       or nnssl_inspect PATH_TO_CHECKPOINT
Weights shipped with this package are given by name instead of a path: {weights.NAMES}
To train from a random start: nnssl_plan -d DATASET -a PRESET --name NAME, and train with -p NAME \
-tr SwinScratchTrainer"""
WHEN_CHANGED = "Restore the old file"  # begins the remedy for a checkpoint that has changed


class NoCheckpointError(ValueError):
    """The named checkpoint does not exist, or several exist and none is named."""


class OriginError(ValueError):
    """The requested weights are not those of the plans, or do not belong to this network."""


@dataclass(frozen=True)
class CheckpointChoice:
    path: Path
    named_by: str
    sha256: str | None = None  # as recorded where it was named, if it was
    named: str | None = None  # how: a path, address or name; None: as `path`
    default: bool = False  # nothing was named or found: released weights


def choose(
    info: Mapping, source: str = "the plans", dims: int = 3, is_ct: bool = True
) -> CheckpointChoice:
    """The checkpoint to start from. Addresses are fetched.

    info: the plans' `pretrain_info`, or what takes its part; `source` is its name in messages. A
    file that is no longer at its recorded path is searched for by its hash. dims, is_ct: of the
    images, for the released weights, which are taken where nothing is named or found.
    Raises NoCheckpointError where a named file is missing, or several are found and none is named;
    AddressError where one cannot be fetched, or released weights are not what was released.
    """
    if path := info.get("checkpoint_path"):
        return _named(path, source, info.get("sha256"))
    if path := os.environ.get(VARIABLE):
        return _named(path, f"the variable {VARIABLE}")
    return _only_one() or _released(source, weights.default(dims, is_ct))


def _only_one() -> CheckpointChoice | None:
    """The only final checkpoint; None where there is none. Raises NoCheckpointError."""
    found = finals()
    if len(found) > 1:
        raise NoCheckpointError(
            f"{len(found)} pretrained checkpoints were found, but none is "
            f"named:\n{_path_lines(found)}\n{REMEDY}"
        )
    by = f"the only one under {_searched()}"
    return CheckpointChoice(found[0], by) if found else None


def _released(source: str, one: weights.Released) -> CheckpointChoice:
    by = f"default: {source} and {VARIABLE} name none, and no {FINAL} exists under {_searched()}"
    return CheckpointChoice(address.released(one.name), by, one.sha256, one.name, default=True)


def finals() -> list[Path]:
    """All final checkpoints under $nnUNet_results/nnssl, sorted."""
    return sorted(_searched().rglob(FINAL)) if RESULTS in os.environ else []


def _searched() -> Path:
    return Path(os.environ.get(RESULTS, f"${RESULTS}"), "nnssl")


def _path_lines(paths: list[Path]) -> str:
    return "\n".join(f"  {path}" for path in paths) or "  none"


def _named(path: str, by: str, sha256: str | None = None) -> CheckpointChoice:
    ours = weights.of_hash(sha256 or "")
    if ours and path == ours.name:  # as plans record it, whatever lies here under that name
        return CheckpointChoice(address.released(ours.name), by, sha256, path)
    there, unreachable = _fetched(path)
    if files.is_file(there) and not unreachable:
        return CheckpointChoice(there, by, sha256, path)
    if sha256 and (moved := _moved(there.name, sha256)):
        return CheckpointChoice(moved, f"{by}, by its sha256: it is no longer at {path}", sha256)
    raise _unfetched(path, unreachable, sha256) if unreachable else _missing(path, by)


def _unfetched(path: str, error: address.AddressError, sha256: str | None) -> address.AddressError:
    """`sha256`: as recorded, which plans do of every file."""
    if not sha256 or not path.startswith("https://") or "?" in path:
        return error
    return address.AddressError(
        f"{error}. Plans record an address without user, password and query (?...): if the server "
        f"needs them, download the file yourself and name it: export {VARIABLE}=FILE"
    )


def _missing(path: str, by: str) -> NoCheckpointError:
    return NoCheckpointError(
        f"no file at {path}, the checkpoint named by {by}. Found "
        f"instead:\n{_path_lines(finals())}\n{REMEDY}"
    )


def _fetched(path: str) -> tuple[Path, address.AddressError | None]:
    """Where the named file should be, and why it could not be fetched."""
    try:
        return address.local(path), None
    except address.AddressError as error:
        return Path(path), error


def _moved(name: str, sha256: str) -> Path | None:
    """A file with this hash that the variable names, that came with this package, that was fetched
    from a server under this name, or that lies under the results with this or the usual name.
    """
    candidates = [path for path in dict.fromkeys(_candidates(name, sha256)) if files.is_file(path)]
    return next((path for path in candidates if files.sha256(path) == sha256), None)


def _candidates(name: str, sha256: str) -> Iterator[Path]:
    variable = os.environ.get(VARIABLE, "")
    if not address.is_address(variable):
        yield Path(variable)
    yield from (known.file for known in weights.RELEASED.values() if known.sha256 == sha256)
    yield from address.fetched(name)
    if RESULTS in os.environ:
        yield from sorted(_searched().rglob(name))
    yield from finals()


def require_recorded_hash(choice: CheckpointChoice, sha256: str) -> None:
    """Raises OriginError when the file's hash is not the one recorded where it was named."""
    if choice.sha256 not in (None, sha256):
        raise OriginError(
            f"{choice.path} has changed since {choice.named_by} recorded it: its sha256 is "
            f"{sha256}, expected {choice.sha256}. {WHEN_CHANGED}, or create new plans:\n  "
            f"nnssl_plan -d DATASET -c {files.quoted(choice.path)} --name NAME"
        )


def pretrain_info(choice: CheckpointChoice, loaded: Checkpoint) -> dict:
    """The entry `pretrain_info` of the plans, from what the chosen file holds.

    It has upstream's keys (nnunetv2/experiment_planning/like_nnssl.py) and ours.
    """
    where = address.pinned(choice.named or choice.path, choice.path)
    return {
        "checkpoint_path": where,
        "checkpoint_name": Path(where).parent.name or where,
        "sha256": loaded.sha256,
        "named_by": choice.named_by,
        **_pretraining(loaded),
        **_upstream_entries(loaded),
        "citations": list(loaded.citations),
    }


def _pretraining(loaded: Checkpoint) -> dict:
    return {
        "method": loaded.method,
        "spacing": loaded.spacing and list(loaded.spacing),
        "hu": loaded.hu and loaded.hu.to_dict(),
        "decoder": loaded.decoder,
    }


def _upstream_entries(loaded: Checkpoint) -> dict:
    adaptation = loaded.adaptation_plan
    keys = ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")
    return {
        **{key: adaptation[key] for key in keys},
        "pt_num_in_channels": adaptation["pretrain_num_input_channels"],
        "pt_used_patchsize": list(loaded.crop),
        "pt_recommended_downstream_patchsize": list(adaptation["recommended_downstream_patchsize"]),
    }
