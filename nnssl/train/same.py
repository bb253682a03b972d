"""Check that a run to be continued is the one that was started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from nnssl import checkpoint, files
from nnssl.methods.method import MethodConfig
from nnssl.types import FINAL


def read_run(file: Path) -> dict:
    """The content of a checkpoint that a run continues from.

    Raises as `checkpoint.read`, and ValueError for one without training state.
    """
    content = checkpoint.read(file)
    if "training_state" not in content:
        raise ValueError(
            f"{file} holds no training state (nor does {FINAL}), so no run can continue from it. "
            "Restore the file that the run wrote, or start from its encoder: --from "
            f"{files.quoted(file)} and another -o FOLDER"
        )
    return content


def require_same_run(
    saved: dict, now: dict, config: type[MethodConfig], folder: Path, may_differ: Sequence[str]
) -> None:
    """Raises ValueError, naming the differences, where the headers are not of one run.

    config: of the method that continues; what the saved settings do not know is as it was then.
    may_differ: fields of `RunConfig` in which a run that continues may differ from what it was.
    """
    named = [{"method": header["method"]} for header in (saved, now)]
    refuse_changes(changes(*named), folder)  # before settings that another method would not know
    saved = {**saved, "method_config": asdict(config.stored(saved["method_config"]))}
    # a file knows lists, not tuples
    before, after = (_fixed(json.loads(json.dumps(header)), may_differ) for header in (saved, now))
    if before["parcels"] is None:  # of an earlier version, which did not note them
        del after["parcels"]
    refuse_changes(changes(before, after), folder)


def refuse_changes(changed: Sequence[str], folder: Path) -> None:
    """Raises ValueError with all of `changed`, if any, for the run in `folder`."""
    if changed:
        lines = "\n  ".join(changed)
        raise ValueError(
            f"the run in {folder} was started with other settings and cannot be continued with "
            f"these:\n  {lines}\nUse the original settings, or start again in another folder with "
            "-o"
        )


def changes(before: dict, after: dict) -> list[str]:
    """What of `after` was otherwise `before`, a line each."""
    return [
        f"{name}: was {before.get(name)}, now {value}"
        for name, value in after.items()
        if before.get(name) != value
    ]


def load_weights(method: nn.Module, weights: dict, file: Path) -> None:
    """Raises ValueError for weights of an earlier version, whose method was built otherwise."""
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{file} cannot be continued: its weights do not match this version's method "
            f"({str(error).splitlines()[-1].strip()}). Start from its encoder with --from "
            f"{files.quoted(file)} and another -o FOLDER, or continue it with the version of nnssl "
            "that began it"
        ) from error


def holds(file: Path, content: dict) -> bool:
    """Whether the checkpoint `file` is there and whole, with the weights of `content`, bit for bit,
    after the same step.
    """
    with suppress(OSError, ValueError):
        there = checkpoint.read(file)
        return there["header"].get("step") == content["header"]["step"] and _are_equal(
            there["network_weights"], content["network_weights"]
        )
    return False


def _are_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in some.items()
    )


def _fixed(header: dict, may_differ: Sequence[str]) -> dict:
    """What may not change in a run, by name."""
    return {
        **{name: value for name, value in header["run"].items() if name not in may_differ},
        **header["method_config"],
        **{name: header[name] for name in ("crop", "preset")},
        "plan": header["plan"]["fingerprint"],
        "cases": header["plan"]["cases"],
        "parcels": header.get("parcels"),
    }
