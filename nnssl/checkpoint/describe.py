"""What `nnssl_inspect` prints of a checkpoint. What is not known of one is said to be unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from nnssl import files
from nnssl.checkpoint.file import Checkpoint
from nnssl.checkpoint.header import PREFIX
from nnssl.checkpoint.plain import printable
from nnssl.hu import HUPolicy
from nnssl.types import MANIFEST

UNKNOWN = "unknown"
PROBE = "probe_"  # begins the names of its figures


def describe(checkpoint: Checkpoint) -> str:
    """What `nnssl_inspect` prints: everything a user of the weights must know."""
    lines = _lines(checkpoint)
    return "\n".join(f"{name:11s}{printable(text)}" for name, text in lines.items())


def _lines(checkpoint: Checkpoint) -> dict[str, str]:
    header, plan = checkpoint.header, checkpoint.header["plan"]
    mebibytes = checkpoint.path.stat().st_size / 2**20
    versions, created = header.get("versions", {}), header.get("created", UNKNOWN)
    lines = {
        "file": f"{checkpoint.path} ({mebibytes:.1f} MiB)",
        "sha256": checkpoint.sha256,
        "method": header["method"],
        "encoder": _encoder(checkpoint),
        "": _pairs(header["encoder"]),
    }
    if decoder := checkpoint.decoder:
        lines["decoder"] = f"{decoder['name']}, pretrained too"
    lines |= {
        "spacing": describe_spacing(plan["spacing"]),
        "crop": describe_crop(header["crop"]),
        "HU policy": describe_hu(checkpoint.hu),
    }
    lines |= _foreign(header["foreign"]) if "foreign" in header else _training(header)
    return lines | {
        "written by": f"{_pairs(versions) or UNKNOWN}, {created}",
        "cite": "; ".join(checkpoint.citations),
    }


def _encoder(checkpoint: Checkpoint) -> str:
    tensors = checkpoint.part(PREFIX)
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    preset = checkpoint.header.get("preset", UNKNOWN)
    return f"{preset}: {len(tensors)} tensors, {millions:.2f} M parameters"


def to_json(checkpoint: Checkpoint) -> str:
    """What `nnssl_inspect --json` prints: the same for programs, and all of the header.

    `manifest` is that of the run whose folder the file lies in, null where there is none.
    """
    manifest = checkpoint.path.parent / MANIFEST
    found = {
        "file": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "sha256": checkpoint.sha256,
        "tensors": len(checkpoint.weights),
        "parameters": sum(tensor.numel() for tensor in checkpoint.weights.values()),
        "header": checkpoint.header,
        "citations": list(checkpoint.citations),
        "manifest": files.read_json(manifest) if manifest.is_file() else None,
    }
    return json.dumps(found, indent=2, allow_nan=False)


def describe_spacing(spacing: list | None) -> str:
    return f"{by(spacing)} mm (z y x)" if spacing else UNKNOWN


def describe_crop(crop: list) -> str:
    axes = "z y x" if len(crop) == 3 else "y x"
    return f"{by(crop)} voxels ({axes})"


def describe_hu(hu: HUPolicy | None) -> str:
    if hu is None:
        return "none: images pass as nnU-Net normalises them"
    return hu.describe()


def _training(header: Mapping) -> dict[str, str]:
    name, cases, fingerprint = _of(header["plan"], "name", "cases", "fingerprint")
    steps, batch, seed = _of(header.get("run", {}), "steps", "batch_size", "seed")
    step = header.get("step", UNKNOWN)
    found = {
        "data": f"{name}, {cases} scans, plan {fingerprint}",
        "trained": f"step {step} of {steps}, {batch} scans per step, seed {seed}",
        "settings": _pairs(header.get("method_config", {})) or UNKNOWN,
        "metrics": _pairs(_without_probe(header.get("metrics", {}))),
    }
    return found | ({"probe": _probe(header["probe"])} if "probe" in header else {})


def _without_probe(metrics: Mapping) -> dict:
    return {name: v for name, v in metrics.items() if not str(name).startswith(PROBE)}


def _foreign(origin: Mapping) -> dict[str, str]:
    """Of weights that `nnssl_convert` took from another project's file."""
    file, sha256, title, licence = _of(origin, "file", "sha256", "title", "licence")
    loaded, total = _of(origin, "loaded", "total")
    adapted = origin.get("adapted", [])
    steps = adapted if isinstance(adapted, list) else [adapted]
    return {
        "converted": f"{file}, sha256 {sha256}",
        "source": f"{title}; {licence}",
        "loaded": f"{loaded} of {total} tensors from the file",
        "adapted": "; ".join(map(str, steps)) or "nothing",
        "left out": _reasons(origin.get("left_out", {})) or "nothing",
    }


def _reasons(left_out: object) -> str:
    if not isinstance(left_out, dict):
        return str(left_out)
    return "; ".join(f"{count} {reason}" for reason, count in left_out.items())


def _probe(probe: Mapping) -> str:
    dice = {str(name): value for name, value in probe.items() if str(name).startswith(PROBE)}
    labels = {name.removeprefix(PROBE): value for name, value in dice.items()}
    decoder = labels.pop("decoder", None)  # its mean over the labels
    cases, dataset, step, best, best_step = _of(
        probe, "cases", "dataset", "step", "best", "best_step"
    )
    count = len(cases) if isinstance(cases, list) else cases
    shown = f"on {count} cases of {dataset} at step {step}: {_pairs(labels)} (mean)"
    decoded = "" if decoder is None else f"; small decoder {_short(decoder)}"
    return f"{shown}; best {_short(best)} at step {best_step}{decoded}"


def _of(values: Mapping, *names: str) -> list:
    return [values.get(name, UNKNOWN) for name in names]


def by(numbers: Iterable[float], form: str = "g") -> str:
    return " x ".join(f"{number:{form}}" for number in numbers)


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
