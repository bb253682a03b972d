"""The page of a pretraining: how it went, what it saw, what it took, and what was left out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nnssl import checkpoint, files
from nnssl.checkpoint.describe import PROBE, by
from nnssl.report import collection, cost
from nnssl.report.charts import PANEL
from nnssl.report.collection import Collection
from nnssl.study.report import drawing
from nnssl.study.report.page import Section, Tile, Tiles, page
from nnssl.study.report.tables import Cell, Table
from nnssl.train import pictures
from nnssl.train.log import LOG, duration
from nnssl.train.run import FINAL, LATEST
from nnssl.types import MANIFEST, PREPROCESSED

POINTS = 600  # of a line
SHOWN_LEFT_OUT = 12
WAITING = 0.1  # of the time: a larger fraction is reported


@dataclass(frozen=True)
class Pretraining:
    """The results folder of a run: rows of its log, the header of its newest checkpoint, and its
    manifest; {} for what is not there.
    """

    folder: Path
    rows: list[dict]
    header: dict
    manifest: dict

    @classmethod
    def read(cls, folder: Path) -> Pretraining:
        rows = files.read_json_lines(folder / LOG)
        header = {}
        for name in (FINAL, LATEST):
            if not header and (folder / name).exists():
                header = checkpoint.read(folder / name)["header"]
        path = folder / MANIFEST
        return cls(folder, rows, header, files.read_json(path) if path.is_file() else {})

    @property
    def name(self) -> str:
        return f"{self.header.get('plan', {}).get('name', '')} {self.folder.resolve().name}".strip()

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def batch_size(self) -> int:
        return self.header["run"]["batch_size"]

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINAL).exists()

    def collection(self) -> Collection | None:
        """The scans it was trained on, where they are still below $nnUNet_preprocessed."""
        plan = self.header.get("plan", {})
        folder = _preprocessed(plan.get("name"))
        if folder is None:
            return None
        found = Collection.read(folder)
        known = found.plan.fingerprint if found.plan else None
        return found if known == plan["fingerprint"] else None


def _preprocessed(name: str | None) -> Path | None:
    """The folder of a collection; None where it is not there, or not whole."""
    root = os.environ.get(PREPROCESSED)
    if not root or not name:
        return None
    folder = Path(root) / "nnssl" / name
    needed = (collection.REPORT, collection.PLAN)
    return folder if all((folder / file).is_file() for file in needed) else None


def render(folder: Path) -> str:
    run = Pretraining.read(folder)
    scans = run.collection()
    sections = [
        *_curves(run),
        Section("Views", [], [], _VIEWS, [_views(run)]),
        *_time(run),
        *_data(run, scans),
    ]
    warnings = _look_at(run, scans)
    return page(f"Pretraining {run.name}", _lead(run), warnings, sections, _facts(run), "Look at")


_VIEWS = (
    "What the method looks at and, where it predicts voxels, what it predicts: the same crops at "
    "several steps. What is hidden is blue."
)


def _facts(run: Pretraining) -> dict[str, str]:
    """The checkpoint's header; of one that it started from the name, not the path."""
    if not run.header:
        return {}
    start = run.header.get("start", {})
    named = {**start, "checkpoint": Path(start["checkpoint"]).name} if start else None
    shown = {**run.header, **({"start": named} if named else {})}
    return {"Settings": json.dumps(shown, indent=2, ensure_ascii=False)}


def _lead(run: Pretraining) -> list[str]:
    if not run.header:
        return [f"Step {run.step}; nothing is saved yet."]
    header, plan = run.header, run.header["plan"]
    crop, spacing = header["crop"], plan["spacing"][-len(header["crop"]) :]
    took = duration(cost.seconds(run.rows, run.batch_size)) if run.rows else "no time"
    return [
        f"{header['method']} on {plan['cases']} scans of {plan['name']}:",
        f"encoder {header['preset']}, crops of {by(crop)} voxels at {by(spacing)} mm,",
        f"{run.batch_size} scans per step. Step {run.step} of {header['run']['steps']}, {took}.",
    ]


def _look_at(run: Pretraining, scans: Collection | None) -> list[str]:
    notes = [f"step {row['step']}: {row['alarm']}" for row in run.rows if row.get("alarm")]
    if not run.is_finished:
        notes.append(
            "it is not finished: it runs, or was stopped and continues by the same line with --c"
        )
    waited = cost.middle(run.rows, "data_wait")
    if waited is not None and waited > WAITING:
        notes.append(
            f"the device waited for crops {waited:.0%} of the time: more --workers, a faster disk"
        )
    if scans is not None and scans.left_out:
        notes.append(f"{len(scans.left_out)} of {len(scans.lines)} scans were left out of it")
    return notes


def _curves(run: Pretraining) -> list[Section]:
    """Losses, probe and monitors: a panel each, and a table of their course."""
    if not run.rows:
        return []
    panels = pictures.panels(run.rows, run.header.get("method", "pretraining"))
    tiles = {name: _panel(run, keys, name) for name, keys in panels.items()}
    sections = []
    for title, names in _grouped(panels).items():
        keys = [key for name in names for key in panels[name]]
        tables = [_course(run, keys, f"{title} in numbers")] if keys else []
        group = Tiles([tiles[name] for name in names], 340)
        sections.append(Section(title, tables, [], _LEADS[title] if names else "", [group]))
    return sections


def _grouped(panels: dict[str, list[str]]) -> dict[str, list[str]]:
    """The names of the panels of each section."""
    probe = [name for name, keys in panels.items() if keys[0].startswith(PROBE)]
    losses = [name for name in panels if name.endswith(": loss")]
    others = [name for name in panels if name not in (*probe, *losses)]
    return {"Losses": losses, "Probe": probe, "Monitors": others}


_LEADS = {
    "Losses": "Pale: as logged; strong: the moving average. Losses of different methods cannot "
    "be compared.",
    "Probe": "Dice of a linear classifier on the frozen encoder, on labelled cases that it was "
    "not fitted on.",
    "Monitors": "An alarm is what collapsed runs have shown for thirty logged steps in a row; the "
    "method's page says what a healthy run looks like.",
}


def _panel(run: Pretraining, keys: list[str], title: str) -> Tile:
    made = drawing.figure(*PANEL)
    pictures.draw(made.subplots(), run.rows, keys, title, POINTS)
    return Tile("", f"{title} by step", drawing.svg(made))


def _course(run: Pretraining, keys: list[str], title: str) -> Table:
    rows = [_extremes(run, key) for key in keys]
    columns = ["what", "first", "lowest", "lowest at", "highest", "highest at", "last"]
    formats: dict[str, str] = dict.fromkeys(("first", "lowest", "highest", "last"), ".4g")
    note = "As logged, without smoothing: one row is one step, and jumps from row to row."
    return Table("", title, note, columns, rows, formats)


def _extremes(run: Pretraining, key: str) -> list[Cell]:
    """First, lowest with its step, highest with its step, last."""
    course = [(row[key], row["step"]) for row in run.rows if key in row]
    lowest, highest = min(course), max(course, key=lambda pair: pair[0])
    return [key, course[0][0], *lowest, *highest, course[-1][0]]


def _views(run: Pretraining) -> Tiles:
    """The pictures kept of several steps; of a run from before they were kept, the last one."""
    last = run.folder / "views.png"
    steps = sorted((run.folder / pictures.VIEWS).glob("[0-9]*.png"))
    tiles = [_view(f"step {int(path.stem)}", f"step {int(path.stem)}", path) for path in steps]
    if not tiles and last.exists():
        tiles = [_view("at the last save", "the last save", last)]
    return Tiles(tiles, 520, 560)


def _view(caption: str, when: str, path: Path) -> Tile:
    return Tile(caption, f"views at {when}", path.read_bytes())


def _time(run: Pretraining) -> list[Section]:
    if not run.rows or not run.header:
        return []
    panels = [
        _panel(run, ["samples_per_second"], "scans per second"),
        _panel(run, ["data_wait"], "waiting for crops, fraction of the time"),
    ]
    rows = [*_training_time(run), *_devices(run), *_fraction_of_peak(run)]
    table = Table("", "Time in numbers", "", ["what", "how much", "note"], rows)
    return [Section("Time", [table], [], "", [Tiles(panels, 340)])]


def _training_time(run: Pretraining) -> list[list[Cell]]:
    speed, waited = cost.middle(run.rows, "samples_per_second"), cost.middle(run.rows, "data_wait")
    return [
        ["training", duration(cost.seconds(run.rows, run.batch_size)), "pauses do not count"],
        ["scans per second", f"{speed:.3g}", "median of the logged rows"],
        ["waiting for crops", f"{waited:.1%}", "of the time; median"],
    ]


def _fraction_of_peak(run: Pretraining) -> list[list[Cell]]:
    fraction = cost.middle(run.rows, "of_peak")
    if fraction is None:
        return []
    return [["of the device's peak", f"{fraction:.0%}", "median; dense bf16, by its data sheet"]]


def _devices(run: Pretraining) -> list[list[Cell]]:
    """What it ran on, for how long and with what energy, by its manifest."""
    if not run.manifest:  # of a version that did not write one
        return []
    hardware, energy = run.manifest["sittings"][-1]["hardware"], run.manifest["energy_wh"]
    count, hours = hardware["processes"], f"{run.manifest['device_hours']:.3g}"
    many = f"{count} processes" if count > 1 else "one process"
    rows: list[list[Cell]] = [
        ["device", hardware.get("gpu") or hardware["processor"], many],
        ["hours of devices", hours, "with saving and pictures"],
    ]
    if energy is not None:
        rows.append(["energy", f"{energy / 1000:.3g} kWh", "of the first machine's GPUs"])
    return rows


def _data(run: Pretraining, scans: Collection | None) -> list[Section]:
    if scans is None:
        return []
    left_out = collection.left_out_section(scans, SHOWN_LEFT_OUT)
    return [left_out]
