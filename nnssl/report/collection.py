"""The page of a collection: what is in it before anything is trained, and what was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.data.crops import stored_array
from nnssl.data.plan import Case, Plan, case_id
from nnssl.data.survey import HISTOGRAM
from nnssl.data.survey_lines import body_histograms
from nnssl.data.survey_report import ScanReport
from nnssl.report import left_out
from nnssl.report.thumbnails import Planes, picture
from nnssl.study.report import drawing
from nnssl.study.report.page import Section, Tile, Tiles, page
from nnssl.study.report.tables import Table
from nnssl.types import HUPolicy

REPORT, PLAN = "report.json", "plan.json"
STEP = 10  # HU: width of a bin
SHOWN_HU = (-500, 1000)  # of a thumbnail's histogram
GREYS = (-1000.0, 1000.0)  # HU that are black and white
PANEL = (4.6, 3.1)  # inches
MOST_ROWS = 2000  # of the table of scans


@dataclass(frozen=True)
class Collection:
    """A folder of `nnssl_pretrain --only-prepare`. lines: those of report.json."""

    folder: Path
    lines: list[dict]
    plan: Plan | None

    @classmethod
    def read(cls, folder: Path) -> Collection:
        lines = files.read_json(folder / REPORT)["scans"]
        path = folder / PLAN
        return cls(folder, lines, Plan.load(path) if path.exists() else None)

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else self.folder.resolve().name

    @property
    def left_out(self) -> list[dict]:
        return [line for line in self.lines if not line["kept"]]

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.plan.cases if self.plan else ()

    def line_of(self, case: Case) -> dict:
        """What the survey said of a case; {} for one that the last survey did not see."""
        return self._by_id.get(case.id, {})

    @cached_property
    def _by_id(self) -> dict[str, dict]:
        return {case_id(line["path"], line["series"]): line for line in self.lines}

    def histogram(self, case: Case) -> np.ndarray | None:
        """Body voxels in bins of STEP HU from HISTOGRAM[0]; None where there are no HU."""
        if self.plan is None or self.plan.hu is None:
            return None
        try:
            line = ScanReport(case.source, case.series, True)
            counts = next(body_histograms([line], self.folder))
        except (OSError, ValueError):
            return None
        return np.add.reduceat(counts.astype(float), np.arange(0, len(counts), STEP))

    def state(self, case: Case) -> str:
        """Whether a case is preprocessed: "stored", "not yet", or why it failed."""
        if (self.folder / f"{case.id}.json").is_file():
            return "stored"
        note = self.folder / f"{case.id}.failed.json"
        if not note.is_file():
            return "not yet"
        why = {"path": case.source, "reason": files.read_json(note)["reason"]}
        return f"failed: {left_out.reason(why)}"


def render(folder: Path, scans: int) -> str:
    """The page, with thumbnails of `scans` scans spread evenly over the collection."""
    collection = Collection.read(folder)
    states = {case.id: collection.state(case) for case in collection.cases}
    sections = [
        Section("What is in it", _tables(collection), [], _IN_IT, [_panels(collection)]),
        Section(
            "Scans", [_each(collection, states)], [], _SCANS, [_tiles(collection, states, scans)]
        ),
        left_out_section(collection),
    ]
    title = f"Collection {collection.name}"
    return page(
        title,
        _lead(collection),
        _look_at(collection, states),
        sections,
        _facts(collection),
        "Look at",
    )


def left_out_section(collection: Collection, shown: int = left_out.SHOWN) -> Section:
    lines = collection.left_out
    if not lines:
        return Section("Left out", [], [])
    tiles = left_out.tiles(lines, collection.folder, shown)
    lead = (
        "Pictures of what could be read and was refused by its values; black and white are the "
        "first and the last hundredth of each scan's values."
        if tiles.tiles
        else ""
    )
    return Section("Left out", left_out.tables(lines), [], lead, [tiles])


_IN_IT = (
    "Every scan weighs the same. The dashed line is the map from HU to the network's input: where "
    "it is steep, the encoder sees differences."
)
_SCANS = (
    "The middle planes as they are stored for training, axial, coronal and sagittal, and the "
    f"histogram of the body from {SHOWN_HU[0]} to {SHOWN_HU[1]} HU (without HU: of these planes). "
    "Each plane is as large as fits."
)


def _lead(collection: Collection) -> list[str]:
    lines, plan = collection.lines, collection.plan
    found = f"{len(lines)} found, {len(lines) - len(collection.left_out)} kept."
    if plan is None:
        return [found, "There is no plan: no scan can be used."]
    spacing = " x ".join(f"{s:g}" for s in plan.spacing)
    crop = " x ".join(map(str, plan.crop))
    values = "CT in HU" if plan.hu else "not CT: each scan is normalised by itself"
    return [
        found,
        f"{len(plan.cases)} scans are in the plan:",
        f"{spacing} mm and crops of {crop} voxels (z y x), {values}.",
    ]


def _look_at(collection: Collection, states: dict[str, str]) -> list[str]:
    """What a user should know before a training."""
    notes = []
    if collection.left_out:
        notes.append(
            f"{len(collection.left_out)} of {len(collection.lines)} are left out; see below why"
        )
    orientations = Counter(line["orientation"] for line in collection.lines if line["kept"])
    if len(orientations) > 1:
        named = ", ".join(f"{name or 'unknown'} {n}" for name, n in orientations.most_common())
        notes.append(f"scans are stored in {len(orientations)} orientations: {named}")
    open_ = Counter(state.partition(":")[0] for state in states.values())
    if open_["not yet"]:
        notes.append(f"{open_['not yet']} scans are not preprocessed yet; the same line continues")
    if open_["failed"]:
        notes.append(f"{open_['failed']} scans could not be preprocessed; the next run tries again")
    changed = sum(bool(line["note"]) for line in collection.lines if line["kept"])
    if changed:
        notes.append(f"{changed} scans were changed in reading; the column “note” says how")
    return notes


def _tables(collection: Collection) -> list[Table]:
    counts = Counter(line["orientation"] or "unknown" for line in collection.lines if line["kept"])
    note = "The directions in which x, y and z run as stored: LPS is a supine patient's CT."
    rows = [[name, count] for name, count in counts.most_common()]
    return [Table("", "Orientations", note, ["orientation", "scans"], rows)] if rows else []


def _each(collection: Collection, states: dict[str, str]) -> Table:
    unit = "hu" if collection.plan and collection.plan.hu else "value"
    measures = {f"{unit}_5": "5 %", f"{unit}_50": "median", f"{unit}_95": "95 %"}
    rows = []
    for case in collection.cases[:MOST_ROWS]:
        line = collection.line_of(case)
        rows.append([
            case.id, " x ".join(map(str, case.shape)), " x ".join(f"{s:.3g}" for s in case.spacing),
            " x ".join(f"{n * s:.0f}" for n, s in zip(case.shape, case.spacing, strict=True)),
            line.get("orientation", ""), *(line.get(key) for key in measures), states[case.id],
            line.get("note", ""),
        ])  # fmt: skip
    named = [f"{'HU' if unit == 'hu' else 'values'}, {word}" for word in measures.values()]
    columns = [
        "scan",
        "voxels",
        "spacing (mm)",
        "size (mm)",
        "orientation",
        *named,
        "preprocessed",
        "note",
    ]
    note = "As stored, z y x. Sort by a column to find what is unlike the others."
    if len(collection.cases) > MOST_ROWS:
        note += f" The first {MOST_ROWS} of {len(collection.cases)}; report.csv has all."
    return Table("", "Each scan", note, columns, rows, dict.fromkeys(named, "g"))


def _tiles(collection: Collection, states: dict[str, str], most: int) -> Tiles:
    if (plan := collection.plan) is None:
        return Tiles([])
    stored = [case for case in plan.cases if states[case.id] == "stored"]
    places = np.linspace(0, len(stored) - 1, min(most, len(stored))).round().astype(int)
    return Tiles([_tile(collection, plan, stored[place]) for place in places])


def _tile(collection: Collection, plan: Plan, case: Case) -> Tile:
    orientation = collection.line_of(case).get("orientation", "")
    volume = stored_array(files.inside(collection.folder, f"{case.id}.b2nd"))
    shape = tuple(volume.shape[1:])
    planes = Planes.of(lambda index: np.asarray(volume[(0, *index)]), shape, plan.spacing)
    counts = collection.histogram(case)
    if plan.hu:
        black, white = (float(plan.hu.normalise(np.float32(hu))) for hu in GREYS)
        limits = black, white
    else:
        limits = planes.limits()
    if counts is None:
        counts = np.histogram(planes.voxels, 112, limits)[0]
    else:
        first, last = ((hu - HISTOGRAM[0]) // STEP for hu in SHOWN_HU)
        counts = counts[first:last]
    words = [orientation, f"{' x '.join(f'{s:.3g}' for s in case.spacing)} mm"]
    text = ", ".join(filter(None, [*words, " x ".join(map(str, case.shape))]))
    made = picture(planes, counts, orientation, limits)
    return Tile(case.id, f"three planes and histogram of {case.id}", made, text)


def _panels(collection: Collection) -> Tiles:
    if (plan := collection.plan) is None or not plan.cases:
        return Tiles([])
    drawn = [_hu_panel(collection, plan.hu)] if plan.hu else []
    spacing = [case.spacing for case in collection.cases]
    sizes = [np.multiply(case.shape, case.spacing) for case in collection.cases]
    drawn += [
        Tile("", "Spacing by axis", _axes_panel("spacing", np.array(spacing))),
        Tile("", "Size by axis", _axes_panel("size", np.array(sizes))),
    ]
    return Tiles([tile for tile in drawn if tile], 340)


def _hu_panel(collection: Collection, policy: HUPolicy) -> Tile | None:
    found = [counts for counts in map(collection.histogram, collection.cases) if counts is not None]
    if not found:
        return None
    fractions = np.array([counts / max(counts.sum(), 1) for counts in found])
    hu = HISTOGRAM[0] + STEP * (np.arange(fractions.shape[1]) + 0.5)
    made = drawing.figure(*PANEL)
    axes = made.subplots()
    low, high = np.percentile(fractions, (5, 95), axis=0)
    axes.fill_between(hu, 100 * low, 100 * high, alpha=0.3, lw=0, label="5 to 95 % of the scans")
    axes.plot(hu, 100 * fractions.mean(axis=0), lw=1.2, label="mean")
    axes.set(xlim=SHOWN_HU, ylim=(0, None), xlabel="HU", ylabel=f"% of the body in {STEP} HU")
    other = axes.twinx()
    knots = np.array(policy.knots)
    other.plot(knots[:, 0], knots[:, 1], ls="--", lw=1, color=drawing.GREY)
    inside = np.interp(SHOWN_HU, *knots.T)
    other.set(xlim=SHOWN_HU, ylim=inside, ylabel="network's input (dashed)")
    axes.legend(fontsize=8, loc="center right")
    axes.set_title(f"HU of the body, {len(found)} scans", fontsize=10)
    return Tile(
        "", "Histogram of the body's HU, and the map to the network's input", drawing.svg(made)
    )


def _axes_panel(what: str, values: np.ndarray) -> str:
    """SVG of the distribution of `values` [scans 3], in mm."""
    made = drawing.figure(*PANEL)
    axes = made.subplots()
    edges = np.linspace(0, 1.05 * values.max(), 40)
    for name, column, colour in zip("zyx", values.T, drawing.COLOURS, strict=False):
        axes.hist(column, edges, histtype="step", lw=1.5, color=colour, label=name)
    axes.set(xlabel=f"{what} (mm), as stored", ylabel="scans")
    axes.legend(fontsize=8)
    axes.set_title(f"{what.capitalize()} by axis", fontsize=10)
    return drawing.svg(made)


def _facts(collection: Collection) -> dict[str, str]:
    plan = collection.plan
    if plan is None:
        return {}
    values = plan.hu.describe() if plan.hu else "each scan by its own mean and std"
    lines = [
        f"fingerprint  {plan.fingerprint}",
        f"spacing      {plan.spacing} mm (z y x)",
        f"crop         {plan.crop} voxels",
        f"intensities  {values}",
    ]
    return {"Plan": "\n".join(lines)}
