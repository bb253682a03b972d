"""What `nnssl_inspect` prints of a checkpoint. What is not known of one is said to be unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nnssl import files
from nnssl.checkpoint.file import Checkpoint
from nnssl.checkpoint.header import PREFIX
from nnssl.checkpoint.plain import printable
from nnssl.types import MANIFEST, HUPolicy

UNKNOWN = "unknown"


def describe(checkpoint: Checkpoint) -> str:
    """What `nnssl_inspect` prints: everything a user of the weights must know."""
    header, plan = checkpoint.header, checkpoint.header["plan"]
    encoder = checkpoint.part(PREFIX)
    parameters = sum(tensor.numel() for tensor in encoder.values())
    preset, created = header.get("preset", UNKNOWN), header.get("created", UNKNOWN)
    lines = {
        "file": f"{checkpoint.path} ({checkpoint.path.stat().st_size / 2**20:.1f} MiB)",
        "sha256": checkpoint.sha256,
        "method": header["method"],
        "encoder": f"{preset}: {len(encoder)} tensors, {parameters / 1e6:.2f} M parameters",
        "": _pairs(header["encoder"]),
        **(
            {"decoder": f"{checkpoint.decoder['name']}, pretrained too"}
            if checkpoint.decoder
            else {}
        ),
        "spacing": f"{_by(plan['spacing'])} mm (z y x)" if plan["spacing"] else UNKNOWN,
        "crop": f"{_by(header['crop'])} voxels ({'z y x'[-2 * len(header['crop']) + 1 :]})",
        "HU policy": describe_hu(checkpoint.hu),
        **(_foreign(header["foreign"]) if "foreign" in header else _training(header)),
        "written by": f"{_pairs(header.get('versions', {})) or UNKNOWN}, {created}",
        "cite": "; ".join(checkpoint.citations),
    }
    return "\n".join(f"{name:11s}{printable(text)}" for name, text in lines.items())


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


def describe_hu(hu: HUPolicy | None) -> str:
    if hu is None:
        return "none: images pass as nnU-Net normalises them"
    return hu.describe()


def _training(header: Mapping) -> dict[str, str]:
    plan, run, metrics = header["plan"], header.get("run", {}), header.get("metrics", {})
    name, cases, fingerprint = _of(plan, "name", "cases", "fingerprint")
    steps, batch, seed = _of(run, "steps", "batch_size", "seed")
    return {
        "data": f"{name}, {cases} scans, plan {fingerprint}",
        "trained": f"step {header.get('step', UNKNOWN)} of {steps}, {batch} scans per step, "
        f"seed {seed}",
        "settings": _pairs(header.get("method_config", {})) or UNKNOWN,
        "metrics": _pairs(
            {name: v for name, v in metrics.items() if not str(name).startswith("probe_")}
        ),
        **({"probe": _probe(header["probe"])} if "probe" in header else {}),
    }


def _foreign(origin: Mapping) -> dict[str, str]:
    """Of weights that `nnssl_convert` took from another project's file."""
    file, sha256, title, licence, loaded, total = _of(
        origin, "file", "sha256", "title", "licence", "loaded", "total"
    )
    left_out = origin.get("left_out", {})
    adapted = origin.get("adapted", [])
    return {
        "converted": f"{file}, sha256 {sha256}",
        "source": f"{title}; {licence}",
        "loaded": f"{loaded} of {total} tensors from the file",
        "adapted": "; ".join(map(str, adapted if isinstance(adapted, list) else [adapted]))
        or "nothing",
        "left out": _reasons(left_out) or "nothing",
    }


def _reasons(left_out: object) -> str:
    if not isinstance(left_out, dict):
        return str(left_out)
    return "; ".join(f"{count} {reason}" for reason, count in left_out.items())


def _probe(probe: Mapping) -> str:
    labels = {
        str(name).removeprefix("probe_"): v
        for name, v in probe.items()
        if str(name).startswith("probe_")
    }
    cases, dataset, step, best, best_step = _of(
        probe, "cases", "dataset", "step", "best", "best_step"
    )
    count = len(cases) if isinstance(cases, list) else cases
    decoder = labels.pop("decoder", None)  # its mean over the labels
    shown = f"on {count} cases of {dataset} at step {step}: {_pairs(labels)} (mean)"
    decoded = "" if decoder is None else f"; small decoder {_short(decoder)}"
    return f"{shown}; best {_short(best)} at step {best_step}{decoded}"


def _of(values: Mapping, *names: str) -> list:
    return [values.get(name, UNKNOWN) for name in names]


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
