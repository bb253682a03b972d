"""A folder for Hugging Face: the weights, their configuration, and a card that says what they are.

model.safetensors   the whole checkpoint (`safe`): nothing else is needed to use it
config.json         what the card and other programs read: encoder, data, input, citation
README.md           the model card; what is not known is said to be unknown
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nnssl import files, weights
from nnssl.address import MODEL
from nnssl.checkpoint.describe import UNKNOWN, describe_hu
from nnssl.checkpoint.file import Checkpoint, load
from nnssl.checkpoint.header import PREFIX
from nnssl.checkpoint.plain import printable
from nnssl.checkpoint.safe import STORED, write_safe
from nnssl.types import HUPolicy

CONFIG, CARD = "config.json", weights.CARD
HUB = "hf://OWNER/REPO"
OF_THE_RUN = ("step", "epoch", "lr", "grad_norm", "data_wait", "rejected", "samples_per_second")
TAGS = ("medical-imaging", "ct", "swin-transformer", "self-supervised-learning", "nnu-net")


def publish(
    folder: Path, content: dict, licence: str | None = None, about: Path | None = None
) -> None:
    """Write the folder, whole or not at all; it must not exist.

    content: of a checkpoint, as `read` and `pack` give it. licence: of the weights; None: that of
    their source, or unknown. about: a text for the card, in Markdown: what no header holds, as
    whose the scans were.
    """
    told = about and about.read_text(encoding="utf-8")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=folder.parent))
    try:
        write_safe(made / MODEL, content)
        loaded = load(made / MODEL)  # what is said is of the file, as whoever takes it reads it
        config = {
            "library_name": "nnssl-swin",
            "model_type": "swin",
            "parameters": parameters(loaded),
            "sha256": loaded.sha256,
            **{name: content[name] for name in STORED},
        }
        files.write_json(made / CONFIG, config)
        with files.atomic(made / CARD) as temporary:
            temporary.write_text(card(loaded, licence, told, _named(folder)), encoding="utf-8")
        made.chmod(0o755)  # mkdtemp lets only its owner in
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def parameters(loaded: Checkpoint, prefix: str = "") -> int:
    """Of the tensors whose names begin with `prefix`."""
    return sum(tensor.numel() for tensor in loaded.part(prefix).values())


def card(
    loaded: Checkpoint, licence: str | None = None, told: str | None = None, named: str = HUB
) -> str:
    """The text of README.md. named: how a command names these weights; others as in `publish`."""
    header, hu = loaded.header, loaded.hu
    plan, foreign, run = header["plan"], header.get("foreign", {}), header.get("run", {})
    licence = licence or foreign.get("licence") or UNKNOWN
    dims = header["encoder"]["spatial_dims"]
    axes = "z y x"[-2 * len(header["crop"]) + 1 :]
    rows = {
        "method": header["method"],
        "encoder": f"Swin, {dims}D, {parameters(loaded, PREFIX) / 1e6:.2f} M parameters "
        f"({header.get('preset', 'preset ' + UNKNOWN)})",
        **({"decoder": f"{loaded.decoder['name']}, pretrained too"} if loaded.decoder else {}),
        "pretrained on": _data(plan, foreign, told),
        "trained": f"step {header.get('step', UNKNOWN)} of {run.get('steps', UNKNOWN)}, "
        f"{run.get('batch_size', UNKNOWN)} scans per step",
        "spacing": f"{_by(plan['spacing'])} mm (z y x)" if plan["spacing"] else UNKNOWN,
        "crop": f"{_by(header['crop'])} voxels ({axes})",
        "input": describe_hu(hu),
        "licence of the weights": licence,
        "sha256": f"`{loaded.sha256}`",
        "written by": f"{_pairs(header.get('versions', {}))}, {header.get('created', UNKNOWN)}",
    }
    table = "\n".join(f"| {name} | {_cell(text)} |" for name, text in rows.items())
    parts = [
        _front(licence),
        f"# {_cell(header['method'])}: a pretrained Swin encoder for CT\n",
        "An encoder for medical images, pretrained without labels, for fine-tuning in nnU-Net and "
        "for features of scans. For research; not a medical device.\n"
        if not foreign
        else "An encoder for medical images from third-party weights, in the form of nnssl-swin. "
        "For research; not a medical device.\n",
        f"| | |\n|---|---|\n{table}\n",
        told,
        "## Use\n\n" + USE.replace(HUB, named),
        _input(plan, dims, hu),
        _figures(header),
        _adapted(foreign),
        "## Cite\n\n" + "\n".join(f"- {printable(one)}" for one in loaded.citations or [UNKNOWN]),
        "\n## Not known\n\n" + _unknown(header, licence, told),
    ]
    return "\n".join(part for part in parts if part) + "\n"


USE = """With nnssl-swin installed beside nnU-Net:

```bash
nnssl_inspect hf://OWNER/REPO                      # what is in it
nnssl_embed -c hf://OWNER/REPO -i SCANS -o OUT     # features of scans
nnssl_plan -d DATASET -c hf://OWNER/REPO           # and on to nnUNetv2_train -tr SwinSSLTrainer
```

```python
import nnssl

encoder = nnssl.load_encoder("hf://OWNER/REPO")
maps = encoder(encoder.preprocess("scan.nii.gz"))  # five maps [1 C Z Y X], of strides 2 to 32
```
"""


def _front(licence: str) -> str:
    """YAML, as the Hub reads it; a licence that is no short name is left to the table."""
    named = (
        licence if re.fullmatch(r"[a-z0-9.-]{2,40}", licence) and licence != UNKNOWN else "unknown"
    )
    tags = "".join(f"\n- {tag}" for tag in TAGS)
    return (
        f"---\nlibrary_name: nnssl-swin\nlicense: {named}\n"
        f"pipeline_tag: image-feature-extraction\ntags:{tags}\n---\n"
    )


def _named(folder: Path) -> str:
    """How a command names the weights in it: those of this package need no address."""
    return folder.name if folder.resolve().parent == weights.FOLDER else HUB


def _data(plan: Mapping, foreign: Mapping, told: str | None) -> str:
    if foreign:
        return f"{foreign.get('title', UNKNOWN)} (third-party weights, converted)"
    cases = plan.get("cases")
    count = UNKNOWN if cases is None else f"{cases} scans"
    if told:
        return f"{count}, see below"
    licence = f"{UNKNOWN}, to be said by the publisher"
    return f"{plan.get('name', UNKNOWN)}: {count}; their licence: {licence}"


def _input(plan: Mapping, dims: int, hu: HUPolicy | None) -> str:
    spacing = (
        f"resampled to {_by(plan['spacing'])} mm"
        if plan["spacing"]
        else "at a spacing that is unknown"
    )
    axes = "[B 1 Z Y X]" if dims == 3 else "[B 1 Y X], axial slices"
    lines = [f"## Input\n\nOne channel, {axes}, axes (z, y, x) as nnU-Net reads them, {spacing}."]
    if hu is None:
        lines.append("Not in HU: each scan minus its mean, divided by its standard deviation.\n")
    else:
        lines.append(
            "HU become input by this map, linear between its points and constant beyond:\n"
        )
        lines.append("| HU | input |\n|---|---|")
        lines += [f"| {x:g} | {value:.4f} |" for x, value in hu.knots]
        lines.append("")
    return "\n".join(lines)


def _figures(header: Mapping) -> str:
    shown = {
        **{k: v for k, v in header.get("metrics", {}).items() if _is_figure(k)},
        **{k: v for k, v in header.get("probe", {}).items() if isinstance(v, (int, float))},
    }
    if not shown:
        return f"## Figures\n\n{UNKNOWN.capitalize()}: the file holds none.\n"
    rows = "\n".join(f"| {_cell(name)} | {_short(value)} |" for name, value in shown.items())
    return (
        "## Figures\n\nOf the pretraining's last logged step; `probe_` is the Dice of a linear "
        "classifier on held-out labels, `probe_decoder` that of a small decoder. None says how good a fine-tuning will be.\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )


def _is_figure(name: object) -> bool:
    return not str(name).startswith("probe_") and name not in OF_THE_RUN


def _adapted(foreign: Mapping) -> str:
    if not foreign:
        return ""
    adapted = foreign.get("adapted") or ["nothing"]
    lines = [
        f"From `{_cell(foreign.get('file', UNKNOWN))}`, sha256 `{foreign.get('sha256', UNKNOWN)}`: "
        f"{foreign.get('loaded', UNKNOWN)} of {foreign.get('total', UNKNOWN)} tensors.",
        *(f"- {printable(one)}" for one in (adapted if isinstance(adapted, list) else [adapted])),
    ]
    return "## Converted\n\n" + "\n".join(lines) + "\n"


def _unknown(header: Mapping, licence: str, told: str | None) -> str:
    plan, foreign = header["plan"], header.get("foreign")
    missing = [
        "the licence of the weights" if licence == UNKNOWN else "",
        "the licence of the scans, and whose they are" if not (foreign or told) else "",
        "the number of scans" if plan.get("cases") is None else "",
        "the spacing of the pretraining" if not plan["spacing"] else "",
        "how good it is after a fine-tuning on your data",
    ]
    return "\n".join(f"- {one}" for one in missing if one)


def _cell(text: object) -> str:
    """On one line of a table."""
    return printable(text).replace("|", "\\|")


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or UNKNOWN


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
