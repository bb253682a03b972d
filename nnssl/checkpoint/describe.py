"""What `nnssl_inspect` prints of a checkpoint. Missing facts are printed as unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

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
    lines = _inspect_lines(checkpoint)
    return "\n".join(f"{name:11s}{printable(text)}" for name, text in lines.items())


def _inspect_lines(checkpoint: Checkpoint) -> dict[str, str]:
    header = checkpoint.header
    return {
        **_file(checkpoint),
        "method": header["method"],
        "encoder": _encoder_line(checkpoint),
        "": _pairs(header["encoder"]),
        **decoder_row(checkpoint),
        **_input(checkpoint),
        **(_foreign(header["foreign"]) if "foreign" in header else _training_lines(header)),
        "written by": written_by(header),
        "cite": "; ".join(checkpoint.citations),
    }


def _file(checkpoint: Checkpoint) -> dict[str, str]:
    mebibytes = checkpoint.path.stat().st_size / 2**20
    return {"file": f"{checkpoint.path} ({mebibytes:.1f} MiB)", "sha256": checkpoint.sha256}


def _encoder_line(checkpoint: Checkpoint) -> str:
    tensors, millions = len(checkpoint.part(PREFIX)), checkpoint.parameters(PREFIX) / 1e6
    preset = checkpoint.header.get("preset", UNKNOWN)
    return f"{preset}: {tensors} tensors, {millions:.2f} M parameters"


def decoder_row(checkpoint: Checkpoint) -> dict[str, str]:
    """A row for the decoder that was pretrained as well; none where there is none."""
    decoder = checkpoint.decoder
    return {"decoder": f"{decoder['name']}, pretrained too"} if decoder else {}


def _input(checkpoint: Checkpoint) -> dict[str, str]:
    header = checkpoint.header
    return {
        "spacing": describe_spacing(header["plan"]["spacing"]),
        "crop": describe_crop(header["crop"]),
        "HU policy": describe_hu(checkpoint.hu),
    }


def written_by(header: Mapping) -> str:
    """The versions of what wrote the file, and the day."""
    versions = _pairs(header.get("versions", {})) or UNKNOWN
    return f"{versions}, {header.get('created', UNKNOWN)}"


def to_json(checkpoint: Checkpoint) -> str:
    """What `nnssl_inspect --json` prints: the same for programs, and all of the header.

    `manifest` is that of the run whose folder the file lies in, null where there is none.
    """
    found = {
        "file": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "sha256": checkpoint.sha256,
        "tensors": len(checkpoint.weights),
        "parameters": checkpoint.parameters(),
        "header": checkpoint.header,
        "citations": list(checkpoint.citations),
        "manifest": _manifest_beside(checkpoint.path),
    }
    return json.dumps(found, indent=2, allow_nan=False)


def _manifest_beside(path: Path) -> dict | None:
    manifest = path.parent / MANIFEST
    return files.read_json(manifest) if manifest.is_file() else None


def describe_spacing(spacing: list | None) -> str:
    return f"{by(spacing)} mm (z y x)" if spacing else UNKNOWN


def describe_crop(crop: list) -> str:
    axes = "z y x" if len(crop) == 3 else "y x"
    return f"{by(crop)} voxels ({axes})"


def describe_hu(hu: HUPolicy | None) -> str:
    if hu is None:
        return "none: images keep nnU-Net's normalisation"
    return hu.describe()


def _training_lines(header: Mapping) -> dict[str, str]:
    seed = header.get("run", {}).get("seed", UNKNOWN)
    found = {
        "data": _collection(header["plan"]),
        "trained": f"{trained(header)}, seed {seed}",
        "settings": _pairs(header.get("method_config", {})) or UNKNOWN,
        "metrics": _pairs(_without_probe(header.get("metrics", {}))),
        **({"start": describe_start(header["start"])} if "start" in header else {}),
    }
    return found | ({"probe": _probe(header["probe"])} if "probe" in header else {})


def _collection(plan: Mapping) -> str:
    name, cases, fingerprint = known(plan, "name", "cases", "fingerprint")
    return f"{name}, {cases} {unit_of(plan)}, plan {fingerprint}"


def describe_start(start: Mapping) -> str:
    """The checkpoint that a pretraining started from."""
    checkpoint, method, sha256 = known(start, "checkpoint", "method", "sha256")
    return f"{checkpoint} (method {method}, sha256 {str(sha256)[:12]})"


def trained(header: Mapping) -> str:
    """How long, and on how many scans at a time."""
    steps, batch = known(header.get("run", {}), "steps", "batch_size")
    unit = unit_of(header["plan"])
    return f"step {header.get('step', UNKNOWN)} of {steps}, {batch} {unit} per step"


def unit_of(plan: Mapping) -> str:
    """What is counted: photographs are no scans."""
    return "images" if plan.get("unit") == "images" else "scans"


def _without_probe(metrics: Mapping) -> dict:
    return {name: v for name, v in metrics.items() if not str(name).startswith(PROBE)}


def _foreign(origin: Mapping) -> dict[str, str]:
    """The lines of weights that `nnssl_convert` took from a third-party file."""
    file, sha256, title, licence = known(origin, "file", "sha256", "title", "licence")
    loaded, total = known(origin, "loaded", "total")
    return {
        "converted": f"{file}, sha256 {sha256}",
        "source": f"{title}; {licence}",
        "loaded": f"{loaded} of {total} tensors from the file",
        "adapted": "; ".join(adaptations(origin)),
        "left out": _left_out_counts(origin.get("left_out", {})) or "nothing",
    }


def adaptations(origin: Mapping) -> list[str]:
    """The adaptations by `nnssl_convert` of the tensors of a third-party file."""
    adapted = origin.get("adapted") or "nothing"
    return list(map(str, adapted)) if isinstance(adapted, list) else [str(adapted)]


def _left_out_counts(left_out: object) -> str:
    if not isinstance(left_out, dict):
        return str(left_out)
    return "; ".join(f"{count} {reason}" for reason, count in left_out.items())


def _probe(probe: Mapping) -> str:
    labels = _dice_by_label(probe)
    decoder = labels.pop("decoder", None)  # its mean over the labels
    step, best, best_step = known(probe, "step", "best", "best_step")
    decoded = "" if decoder is None else f"; small decoder {_rounded_text(decoder)}"
    return (
        f"on {_probe_cases(probe)} at step {step}: {_pairs(labels)} (mean); "
        f"best {_rounded_text(best)} at step {best_step}{decoded}"
    )


def _dice_by_label(probe: Mapping) -> dict[str, object]:
    named = {str(name): value for name, value in probe.items()}
    return {n.removeprefix(PROBE): value for n, value in named.items() if n.startswith(PROBE)}


def _probe_cases(probe: Mapping) -> str:
    cases, dataset = known(probe, "cases", "dataset")
    count = len(cases) if isinstance(cases, list) else cases
    return f"{count} cases of {dataset}"


def known(values: Mapping, *names: str) -> list:
    """The values by these names; UNKNOWN for what is not there."""
    return [values.get(name, UNKNOWN) for name in names]


def by(numbers: Iterable[float], form: str = "g") -> str:
    return " x ".join(f"{number:{form}}" for number in numbers)


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{name} {_rounded_text(value)}" for name, value in values.items())


def _rounded_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
