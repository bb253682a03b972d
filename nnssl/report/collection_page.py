"""The page of a collection: its scans before any training, and those that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.checkpoint.describe import by
from nnssl.data.crops import stored_array
from nnssl.data.plan import Case, Plan
from nnssl.data.survey import HISTOGRAM
from nnssl.hu import HUPolicy
from nnssl.report import charts, left_out
from nnssl.report.charts import SHOWN_HU, STEP
from nnssl.report.collection import Collection
from nnssl.report.thumbnails import Planes, picture
from nnssl.study.report.page import Section, Tile, Tiles, page
from nnssl.study.report.tables import Cell, Table
from nnssl.types import Spacing

GREYS = (-1000.0, 1000.0)  # HU that are black and white
MOST_ROWS = 2000  # of the table of scans
PERCENTILES = {5: "5 %", 50: "median", 95: "95 %"}


def render_collection(folder: Path, scans: int) -> str:
    """The page, with thumbnails of `scans` scans spread evenly over the collection."""
    collection = Collection.read(folder)
    states = {case.id: collection.state(case) for case in collection.cases}
    sections = _sections(collection, states, scans)
    title, warnings = f"Collection {collection.name}", _look_at(collection, states)
    return page(
        title,
        _collection_lead(collection),
        warnings,
        sections,
        _plan_listing(collection),
        "Look at",
    )


def _sections(collection: Collection, states: dict[str, str], scans: int) -> list[Section]:
    scans_shown = [_tiles(collection, states, scans)]
    return [
        Section("What is in it", _tables(collection), [], _IN_IT, [_panels(collection)]),
        Section("Scans", [_each(collection, states)], [], _SCANS, scans_shown),
        left_out_section(collection),
    ]


def left_out_section(collection: Collection, shown: int = left_out.SHOWN) -> Section:
    lines = collection.left_out
    if not lines:
        return Section("Left out", [], [])
    tiles = left_out.tiles(lines, collection.folder, shown)
    return Section(
        "Left out", left_out.tables(lines), [], _LEFT_OUT if tiles.tiles else "", [tiles]
    )


_LEFT_OUT = (
    "Pictures of scans that could be read but were refused for their values; black and white are "
    "the 1st and 99th percentile of each scan."
)
_IN_IT = (
    "Every scan has the same weight. The dashed line is the map from HU to the network's input: "
    "where it is steep, the encoder sees differences."
)
_SCANS = (
    "The middle planes as they are stored for training, axial, coronal and sagittal, and the "
    f"histogram of the body from {SHOWN_HU[0]} to {SHOWN_HU[1]} HU (without HU: of these planes). "
    "Each plane is as large as fits."
)

_NO_PICTURE = "no picture: what is stored is damaged; --check stores it again from the raw scan"


def _collection_lead(collection: Collection) -> list[str]:
    lines, plan = collection.lines, collection.plan
    found = f"{len(lines)} found, {len(collection.kept)} kept."
    return (
        [found, *_plan_summary(plan)] if plan else [found, "There is no plan: no scan is usable."]
    )


def _plan_summary(plan: Plan) -> list[str]:
    spacing, crop = by(plan.spacing), by(plan.crop)
    values = "CT in HU" if plan.hu else "not CT: each scan is normalised by itself"
    return [
        f"{len(plan.cases)} scans are in the plan:",
        f"{spacing} mm and crops of {crop} voxels (z y x), {values}.",
    ]


def _look_at(collection: Collection, states: dict[str, str]) -> list[str]:
    """Warnings for the user before a training."""
    return [
        *_left_out_note(collection),
        *_orientations_note(collection),
        *_preprocessing_notes(states),
        *_changed_note(collection),
    ]


def _left_out_note(collection: Collection) -> Iterator[str]:
    if out := len(collection.left_out):
        yield f"{out} of {len(collection.lines)} are left out; reasons below"


def _orientations_note(collection: Collection) -> Iterator[str]:
    counts = _orientations(collection)
    if len(counts) > 1:
        named = ", ".join(f"{name} {count}" for name, count in counts)
        yield f"scans are stored in {len(counts)} orientations: {named}"


def _orientations(collection: Collection) -> list[tuple[str, int]]:
    """How many scans are stored in each, the most frequent first."""
    return Counter(line["orientation"] or "unknown" for line in collection.kept).most_common()


def _preprocessing_notes(states: dict[str, str]) -> Iterator[str]:
    counts = Counter(state.partition(":")[0] for state in states.values())
    if waiting := counts["not yet"]:
        yield f"{waiting} scans are not preprocessed yet; run the same command again"
    if failed := counts["failed"]:
        yield f"{failed} scans could not be preprocessed; the next run retries"


def _changed_note(collection: Collection) -> Iterator[str]:
    if changed := sum(bool(line["note"]) for line in collection.kept):
        yield f"{changed} scans were changed in reading; the column “note” says how"


def _tables(collection: Collection) -> list[Table]:
    note = "The directions in which x, y and z run as stored: LPS is a supine patient's CT."
    rows: list[list[Cell]] = [[name, count] for name, count in _orientations(collection)]
    return [Table("", "Orientations", note, ["orientation", "scans"], rows)] if rows else []


def _each(collection: Collection, states: dict[str, str]) -> Table:
    percentiles = _percentiles(collection.in_hu)
    cases, names = collection.cases[:MOST_ROWS], list(percentiles.values())
    rows = [_case_cells(collection.line_of(case), case, states[case.id], names) for case in cases]
    shape = ["scan", "voxels", "spacing (mm)", "size (mm)", "orientation"]
    columns = [*shape, *percentiles, "preprocessed", "note"]
    note = _note_of_rows(len(collection.cases))
    return Table("", "Each scan", note, columns, rows, dict.fromkeys(percentiles, "g"))


def _percentiles(in_hu: bool) -> dict[str, str]:
    """Titles of columns, and their names in the survey."""
    unit, key = ("HU", "hu") if in_hu else ("values", "value")
    return {f"{unit}, {word}": f"{key}_{n}" for n, word in PERCENTILES.items()}


def _note_of_rows(cases: int) -> str:
    note = "As stored, z y x. Sort by a column to find outliers."
    return (
        f"{note} The first {MOST_ROWS} of {cases}; report.csv has all."
        if cases > MOST_ROWS
        else note
    )


def _case_cells(line: dict, case: Case, state: str, percentiles: list[str]) -> list[Cell]:
    """line: the survey's; percentiles: names of its columns."""
    values = [line.get(name) for name in percentiles]
    return [*_sizes(case), line.get("orientation", ""), *values, state, line.get("note", "")]


def _sizes(case: Case) -> list[Cell]:
    """Its id, and its voxels, their spacing and the size in mm."""
    size = np.multiply(case.shape, case.spacing)
    return [case.id, by(case.shape), by(case.spacing, ".3g"), by(size, ".0f")]


def _tiles(collection: Collection, states: dict[str, str], most: int) -> Tiles:
    if (plan := collection.plan) is None:
        return Tiles([])
    stored = [case for case in plan.cases if states[case.id] == "stored"]
    return Tiles([_case_tile(collection, plan, case) for case in _spread(stored, most)])


def _spread(cases: list[Case], most: int) -> list[Case]:
    """At most `most` of them, evenly over the list."""
    indices = np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int)
    return [cases[index] for index in indices]


def _case_tile(collection: Collection, plan: Plan, case: Case) -> Tile:
    orientation = collection.line_of(case).get("orientation", "")
    try:
        planes = _planes(files.inside(collection.folder, f"{case.id}.b2nd"), plan.spacing)
    except (OSError, RuntimeError, ValueError):  # blosc2 has one for each kind of damage
        return Tile(case.id, _NO_PICTURE, None, _tile_caption(case, orientation))
    limits = _grey_limits(plan) or planes.limits()
    counts = _shown_counts(collection.histogram(case))
    if counts is None:
        counts = np.histogram(planes.voxels, 112, limits)[0]
    image, words = picture(planes, counts, orientation, limits), _tile_caption(case, orientation)
    return Tile(case.id, f"three planes and histogram of {case.id}", image, words)


def _tile_caption(case: Case, orientation: str) -> str:
    """Below its picture."""
    known = [orientation, f"{by(case.spacing, '.3g')} mm", by(case.shape)]
    return ", ".join(filter(None, known))


def _planes(path: Path, spacing: Spacing) -> Planes:
    volume = stored_array(path)
    shape = tuple(volume.shape[1:])
    return Planes.of(lambda index: np.asarray(volume[(0, *index)]), shape, spacing)


def _grey_limits(plan: Plan) -> tuple[float, float] | None:
    """The network's input of GREYS; None where there are no HU."""
    if plan.hu is None:
        return None
    black, white = (float(plan.hu.normalise(np.float32(hu))) for hu in GREYS)
    return black, white


def _shown_counts(counts: np.ndarray | None) -> np.ndarray | None:
    """The bins of SHOWN_HU in the body's histogram."""
    first, last = ((hu - HISTOGRAM[0]) // STEP for hu in SHOWN_HU)
    return None if counts is None else counts[first:last]


def _panels(collection: Collection) -> Tiles:
    if (plan := collection.plan) is None or not plan.cases:
        return Tiles([])
    spacing = np.array([case.spacing for case in plan.cases])
    sizes = np.array([case.shape for case in plan.cases]) * spacing
    by_axis = [_axes_tile("spacing", spacing), _axes_tile("size", sizes)]
    return Tiles([*_hu_tile(collection, plan.hu), *by_axis], 340)


def _axes_tile(what: str, values: np.ndarray) -> Tile:
    """values: mm, [scans 3]."""
    return Tile("", f"{what.capitalize()} by axis", charts.axes_panel(what, values))


def _hu_tile(collection: Collection, policy: HUPolicy | None) -> Iterator[Tile]:
    histograms = [h for h in map(collection.histogram, collection.cases) if h is not None]
    if policy is not None and histograms:
        alt = "Histogram of the body's HU, and the map to the network's input"
        yield Tile("", alt, charts.hu_panel(histograms, policy))


def _plan_listing(collection: Collection) -> dict[str, str]:
    if collection.plan is None:
        return {}
    facts = _plan_facts(collection.plan)
    return {"Plan": "\n".join(f"{name:13}{value}" for name, value in facts.items())}


def _plan_facts(plan: Plan) -> dict[str, str]:
    return {
        "fingerprint": plan.fingerprint,
        "spacing": f"{plan.spacing} mm (z y x)",
        "crop": f"{plan.crop} voxels",
        "intensities": plan.hu.describe() if plan.hu else "each scan by its own mean and std",
    }
