"""The page of a pretraining: losses, inputs, cost, and the scans left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from pathlib import Path

from nnssl.checkpoint.describe import PROBE, UNKNOWN, by
from nnssl.report import collection_page, cost
from nnssl.report.charts import PANEL
from nnssl.report.collection import Collection
from nnssl.report.pretraining_folder import Pretraining
from nnssl.study.report import drawing
from nnssl.study.report.page import Section, Tile, Tiles, page
from nnssl.study.report.tables import Cell, Table
from nnssl.train import manifest, pictures
from nnssl.types import MANIFEST

POINTS = 600  # of a line
SHOWN_LEFT_OUT = 12
NO_VALUE = ("none", "")  # and its step
WAITING = 0.1  # of the time: a larger fraction is reported


def render_pretraining(folder: Path) -> str:
    run = Pretraining.read(folder)
    scans, why_not = run.collection()
    views = Section("Views", [], [], _VIEWS, [_views(run)])
    sections = [*_curves(run), views, *_time(run), *_left_out_sections(scans)]
    title, warnings = f"Pretraining {run.name}", [*_look_at(run, scans), *why_not]
    return page(title, _training_lead(run), warnings, sections, _settings_listing(run), "Look at")


_VIEWS = (
    "The method's inputs and, where it predicts voxels, its predictions: the same crops at "
    "several steps. Masked voxels are blue."
)


def _settings_listing(run: Pretraining) -> dict[str, str]:
    """The checkpoint's header; of one that it started from the name, not the path."""
    if not run.header:
        return {}
    shown = dict(run.header)
    if start := shown.get("start"):
        shown["start"] = {**start, "checkpoint": Path(start["checkpoint"]).name}
    return {"Settings": json.dumps(shown, indent=2, ensure_ascii=False)}


def _training_lead(run: Pretraining) -> list[str]:
    if not run.header:
        return [f"Step {run.step}; nothing is saved yet."]
    return [*_trained(run.header), _progress(run)]


def _trained(header: dict) -> list[str]:
    """The method, its scans, the encoder and its crops."""
    crop, plan = header["crop"], header["plan"]
    spacing = plan["spacing"][-len(crop) :]
    return [
        f"{header['method']} on {plan['cases']} scans of {plan['name']}:",
        f"encoder {header['preset']}, crops of {by(crop)} voxels at {by(spacing)} mm,",
    ]


def _progress(run: Pretraining) -> str:
    steps = run.header["run"]["steps"]
    took = run.duration if run.rows else "no time"
    return f"{run.batch_size} scans per step. Step {run.step} of {steps}, {took}."


def _look_at(run: Pretraining, scans: Collection | None) -> Iterator[str]:
    """What a user should know of it."""
    yield from (f"step {row['step']}: {row['alarm']}" for row in run.rows if row.get("alarm"))
    if run.sittings is None:
        yield f"{MANIFEST} cannot be read: devices, hours and energy are left out"
    if not run.is_finished:
        yield "not finished: still running, or stopped (the same command with --c continues it)"
    yield from _waiting_note(run)
    if scans is not None and scans.left_out:
        yield f"{len(scans.left_out)} of {len(scans.lines)} scans were left out"


def _waiting_note(run: Pretraining) -> Iterator[str]:
    waited = cost.middle(run.rows, "data_wait")
    if waited is not None and waited > WAITING:
        yield f"the device waited for crops {waited:.0%} of the time: more --workers, a faster disk"


def _curves(run: Pretraining) -> list[Section]:
    """Losses, probe and monitors: a panel each, and a table of their course."""
    if not run.rows:
        return []
    panels = pictures.panels(run.rows, run.header.get("method", "pretraining"))
    return [_curves_of(run, title, group) for title, group in _grouped(panels).items()]


def _curves_of(run: Pretraining, title: str, panels: dict[str, list[str]]) -> Section:
    """panels: by its name, the columns of the log in each."""
    if not panels:
        return Section(title, [], [])
    keys = list(chain.from_iterable(panels.values()))
    tiles = Tiles([_panel(run, keys, name) for name, keys in panels.items()], 340)
    return Section(title, [_course(run, keys, f"{title} in numbers")], [], _LEADS[title], [tiles])


def _grouped(panels: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """The panels of each section."""
    groups: dict[str, dict[str, list[str]]] = {title: {} for title in _LEADS}
    for name, keys in panels.items():
        groups[_section_of(name, keys)][name] = keys
    return groups


def _section_of(panel: str, keys: list[str]) -> str:
    if keys[0].startswith(PROBE):
        return "Probe"
    return "Losses" if panel.endswith(": loss") else "Monitors"


_LEADS = {
    "Losses": "Pale: as logged; strong: the moving average. Losses of different methods cannot "
    "be compared.",
    "Probe": "Dice of a linear classifier on the frozen encoder, on labelled cases that it was "
    "not fitted on.",
    "Monitors": "An alarm is what collapsed runs have shown for thirty logged steps in a row; the "
    "method's page says what a healthy run looks like.",
}


def _panel(run: Pretraining, keys: list[str], title: str) -> Tile:
    figure = drawing.figure(*PANEL)
    pictures.draw_panel(figure.subplots(), run.rows, keys, title, POINTS)
    return Tile("", f"{title} by step", drawing.svg(figure))


def _course(run: Pretraining, keys: list[str], title: str) -> Table:
    rows = [_extremes(run.rows, key) for key in keys]
    columns = ["what", "first", "lowest", "lowest at", "highest", "highest at", "last"]
    formats: dict[str, str] = dict.fromkeys(("first", "lowest", "highest", "last"), ".4g")
    note = "As logged, without smoothing: one row is one step, and jumps from row to row."
    return Table("", title, note, columns, rows, formats)


def _extremes(rows: list[dict], key: str) -> list[Cell]:
    """First, lowest with its step, highest with its step, last."""
    course = [(row[key], row["step"]) for row in rows if key in row]
    finite = [pair for pair in course if pictures.is_finite(pair[0])]
    lowest = min(finite, default=NO_VALUE)
    highest = max(finite, key=itemgetter(0), default=NO_VALUE)
    return [key, course[0][0], *lowest, *highest, course[-1][0]]


def _views(run: Pretraining) -> Tiles:
    """The pictures kept of several steps; of a run from before they were kept, the last one."""
    last = run.folder / "views.png"
    steps = sorted((run.folder / pictures.VIEWS).glob("[0-9]*.png"))
    tiles = [_view_of_step(path) for path in steps]
    if not tiles and last.exists():
        tiles = [_view("at the last save", "the last save", last)]
    return Tiles(tiles, 520, 560)


def _view_of_step(path: Path) -> Tile:
    step = f"step {int(path.stem)}"
    return _view(step, step, path)


def _view(caption: str, when: str, path: Path) -> Tile:
    return Tile(caption, f"views at {when}", path.read_bytes())


def _time(run: Pretraining) -> list[Section]:
    if not run.rows or not run.header:
        return []
    rows = [*_training_time(run), *_devices(run.sittings), *_fraction_of_peak(run)]
    table = Table("", "Time in numbers", "", ["what", "how much", "note"], rows)
    return [Section("Time", [table], [], "", [_speed(run)])]


def _speed(run: Pretraining) -> Tiles:
    scans = _panel(run, ["samples_per_second"], "scans per second")
    waiting = _panel(run, ["data_wait"], "waiting for crops, fraction of the time")
    return Tiles([scans, waiting], 340)


def _training_time(run: Pretraining) -> list[list[Cell]]:
    speed, waited = cost.middle(run.rows, "samples_per_second"), cost.middle(run.rows, "data_wait")
    rows: list[list[Cell]] = [
        ["training", run.duration, "pauses do not count"],
        ["scans per second", f"{speed:.3g}", "median of the logged rows"],
    ]
    if waited is not None:
        rows.append(["waiting for crops", f"{waited:.1%}", "of the time; median"])
    return rows


def _fraction_of_peak(run: Pretraining) -> list[list[Cell]]:
    fraction = cost.middle(run.rows, "of_peak")
    if fraction is None:
        return []
    return [["of the device's peak", f"{fraction:.0%}", "median; dense bf16, by its data sheet"]]


def _devices(sittings: list[dict] | None) -> list[list[Cell]]:
    """What it ran on, for how long and with what energy."""
    if not sittings:
        return []
    hours = f"{sum(each['device_hours'] for each in sittings):.3g}"
    return [
        *_device(sittings[-1].get("hardware")),
        ["hours of devices", hours, "with saving and pictures"],
        *_energy(manifest.watt_hours(sittings)),
    ]


def _device(hardware: object) -> list[list[Cell]]:
    if not isinstance(hardware, dict):
        return []
    count = hardware.get("processes", 1)
    many = "one process" if count == 1 else f"{count} processes"
    return [["device", hardware.get("gpu") or hardware.get("processor", UNKNOWN), many]]


def _energy(watt_hours: float | None) -> list[list[Cell]]:
    if watt_hours is None:
        return []
    return [["energy", f"{watt_hours / 1000:.3g} kWh", "of the first machine's GPUs"]]


def _left_out_sections(scans: Collection | None) -> list[Section]:
    return [] if scans is None else [collection_page.left_out_section(scans, SHOWN_LEFT_OUT)]
