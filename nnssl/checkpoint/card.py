"""A folder for Hugging Face: the weights, their configuration, and a model card.

model.safetensors   the whole checkpoint (`safe`): nothing else is needed to use it
config.json         what the card and other programs read: encoder, data, input, citation
README.md the model card; missing facts are stated as unknown
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnssl import files, weights
from nnssl.address import MODEL, public
from nnssl.checkpoint.card_use import gives_features, input_section, use_section
from nnssl.checkpoint.describe import (
    PROBE,
    UNKNOWN,
    adaptations,
    decoder_row,
    describe_crop,
    describe_hu,
    describe_spacing,
    describe_start,
    known,
    trained,
    unit_of,
    written_by,
)
from nnssl.checkpoint.file import Checkpoint, load
from nnssl.checkpoint.header import PREFIX
from nnssl.checkpoint.plain import printable
from nnssl.checkpoint.safe import CONFIG, LIBRARY, STORED, write_safe

CARD = weights.CARD
HUB = "hf://OWNER/REPO"
OF_THE_RUN = ("step", "epoch", "lr", "grad_norm", "data_wait", "rejected", "samples_per_second")
CT, WITHOUT_LABELS = "ct", "self-supervised-learning"  # tags where they are true
TAGS = ("medical-imaging", CT, "swin-transformer", WITHOUT_LABELS, "nnu-net")


def publish(
    folder: Path, content: dict, licence: str | None = None, about: Path | None = None
) -> None:
    """Write the folder, whole or not at all; it must not exist.

    content: of a checkpoint, as `read` and `pack` give it. licence: of the weights; None: that of
    their source, or unknown. about: a text for the card, in Markdown: what no header holds, as
    whose the scans were.
    """
    text = about and about.read_text(encoding="utf-8")
    with _whole_folder(folder) as staging:
        write_safe(staging / MODEL, content)
        loaded = load(staging / MODEL)  # the card is of the file, as whoever takes it reads it
        files.write_json(staging / CONFIG, _hub_config(loaded, content))
        with files.atomic(staging / CARD) as temporary:
            temporary.write_text(card(loaded, licence, text, _named(folder)), encoding="utf-8")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `folder`, on error it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp lets only its owner in
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _hub_config(loaded: Checkpoint, content: dict) -> dict:
    return {
        "library_name": LIBRARY,
        "model_type": "swin",
        "parameters": loaded.parameters(),
        "sha256": loaded.sha256,
        **{name: content[name] for name in STORED},
    }


def card(
    loaded: Checkpoint, licence: str | None = None, about: str | None = None, named: str = HUB
) -> str:
    """The text of README.md. named: how a command names these weights; others as in `publish`."""
    header = loaded.header
    foreign = header.get("foreign", {})
    licence = licence or _stated_licence(foreign)
    parts = [
        _front(licence, _tags(loaded)),
        f"# {_cell(header['method'])}: a pretrained Swin encoder{' for CT' if loaded.hu else ''}\n",
        CONVERTED if foreign else _pretrained(loaded),
        _markdown_table(_card_rows(loaded, licence, about)),
        about,
        use_section(named, loaded),
        input_section(loaded),
        _figures(header),
        _adapted(foreign),
        "## Cite\n\n" + _bullets(loaded.citations or [UNKNOWN]),
        "\n## Not known\n\n" + _unknown(header, licence, about),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _stated_licence(foreign: Mapping) -> str:
    """Of the weights, as their source states it; UNKNOWN where it does not."""
    licence = re.sub("^licence( of the weights)?: ", "", str(foreign.get("licence", UNKNOWN)))
    return UNKNOWN if licence == "unstated" else licence


def _card_rows(loaded: Checkpoint, licence: str, about: str | None) -> dict[str, str]:
    header, plan = loaded.header, loaded.header["plan"]
    return {
        "method": header["method"],
        "encoder": _encoder_summary(loaded),
        **decoder_row(loaded),
        "pretrained on": _pretraining_data(plan, header.get("foreign", {}), about),
        "trained": trained(header),
        **_started_from(header),
        "spacing": describe_spacing(plan["spacing"]),
        "crop": describe_crop(header["crop"]),
        "input": describe_hu(loaded.hu),
        "licence of the weights": licence,
        "sha256": f"`{loaded.sha256}`",
        "written by": written_by(header),
    }


def _encoder_summary(loaded: Checkpoint) -> str:
    header = loaded.header
    dims, millions = loaded.encoder_config.spatial_dims, loaded.parameters(PREFIX) / 1e6
    preset = header.get("preset", f"preset {UNKNOWN}")
    return f"Swin, {dims}D, {millions:.2f} M parameters ({preset})"


def _started_from(header: Mapping) -> dict[str, str]:
    """Without the folder, which is of a machine, and without what may be secret in an address."""
    if (start := header.get("start")) is None:
        return {}
    name = re.split(r"[\\/]", public(str(start.get("checkpoint", UNKNOWN))))[-1]
    labels = ", which was trained with labels" if start.get("supervised") else ""
    return {"started from": describe_start({**start, "checkpoint": name}) + labels}


def _how(loaded: Checkpoint) -> str:
    if loaded.header.get("supervised"):
        return "with labels"
    if loaded.has_seen_labels:
        return "without labels from an encoder that had been trained with labels"
    return "without labels"


def _tags(loaded: Checkpoint) -> list[str]:
    without_labels = not loaded.has_seen_labels and "foreign" not in loaded.header
    are_true = {CT: loaded.hu is not None, WITHOUT_LABELS: without_labels}
    return [tag for tag in TAGS if are_true.get(tag, True)]


PRETRAINED = (
    "An encoder for medical images, pretrained {}, for fine-tuning in nnU-Net{}. For research; "
    "not a medical device.\n"
)
CONVERTED = (
    "An encoder for medical images from third-party weights, in the form of nnssl-swin. "
    "For research; not a medical device.\n"
)


def _pretrained(loaded: Checkpoint) -> str:
    features = " and for features of scans" if gives_features(loaded) else ""
    return PRETRAINED.format(_how(loaded), features)


def _front(licence: str, tags: Iterable[str]) -> str:
    """YAML, as the Hub reads it; a licence that is no short name is left to the table."""
    is_short = re.fullmatch(r"[a-z0-9.-]{2,40}", licence.lower()) and licence != UNKNOWN
    lines = "".join(f"\n- {tag}" for tag in tags)
    return (
        f"---\nlibrary_name: {LIBRARY}\nlicense: {licence.lower() if is_short else 'unknown'}\n"
        f"pipeline_tag: image-feature-extraction\ntags:{lines}\n---\n"
    )


def _named(folder: Path) -> str:
    """How a command names the weights in it: those of this package need no address."""
    return folder.name if folder.resolve().parent == weights.FOLDER else HUB


def _pretraining_data(plan: Mapping, foreign: Mapping, about: str | None) -> str:
    theirs = f"{foreign.get('title', UNKNOWN)} (third-party weights, converted)"
    if about:
        return f"{theirs if foreign else _scans(plan)}, see below"
    licence = f"{UNKNOWN}, to be stated by the publisher"
    if foreign:
        return f"{theirs}; licence of the scans: {licence}"
    return f"{plan.get('name', UNKNOWN)}: {_scans(plan)}; their licence: {licence}"


def _scans(plan: Mapping) -> str:
    cases = plan.get("cases")
    return UNKNOWN if cases is None else f"{cases} {unit_of(plan)}"


def _figures(header: Mapping) -> str:
    shown = _of_last_step(header)
    if not shown:
        return f"## Figures\n\n{UNKNOWN.capitalize()}: the file holds none.\n"
    return FIGURES + _markdown_table({name: _figure_text(value) for name, value in shown.items()})


def _of_last_step(header: Mapping) -> dict[str, object]:
    """Its losses and monitors, then what the probe found."""
    metrics, probe = header.get("metrics", {}), header.get("probe", {})
    return {
        **{name: value for name, value in metrics.items() if _is_figure(name)},
        **{name: value for name, value in probe.items() if isinstance(value, (int, float))},
    }


FIGURES = (
    "## Figures\n\nOf the pretraining's last logged step; `probe_` is the Dice of a linear "
    "classifier on held-out labels, `probe_decoder` that of a small decoder. None of them "
    "predicts the quality of a fine-tuning.\n\n"
)


def _is_figure(name: object) -> bool:
    return not str(name).startswith(PROBE) and name not in OF_THE_RUN


def _adapted(foreign: Mapping) -> str:
    if not foreign:
        return ""
    file, sha256, loaded, total = known(foreign, "file", "sha256", "loaded", "total")
    return (
        f"## Converted\n\nFrom `{_cell(file)}`, sha256 `{sha256}`: {loaded} of {total} tensors.\n"
        f"{_bullets(adaptations(foreign))}\n"
    )


def _bullets(texts: Iterable[object]) -> str:
    return "\n".join(f"- {printable(text)}" for text in texts)


def _unknown(header: Mapping, licence: str, about: str | None) -> str:
    plan = header["plan"]
    facts = {
        "the licence of the weights": licence != UNKNOWN,
        "the licence of the scans, and whose they are": bool(about),
        "the number of scans": plan.get("cases") is not None,
        "the spacing of the pretraining": plan["spacing"],
        "its performance after fine-tuning on your data": False,
    }
    return _bullets(what for what, is_known in facts.items() if not is_known)


def _markdown_table(rows: Mapping[str, str]) -> str:
    lines = "\n".join(f"| {_cell(name)} | {_cell(text)} |" for name, text in rows.items())
    return f"| | |\n|---|---|\n{lines}\n"


def _cell(text: object) -> str:
    """On one line of a table."""
    return printable(text).replace("|", "\\|")


def _figure_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
