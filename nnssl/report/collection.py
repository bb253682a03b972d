"""The page of a collection: what is in it before anything is trained, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nnssl import files
from nnssl.checkpoint.describe import by
from nnssl.data.crops import stored_array
from nnssl.data.plan import Case, Plan, case_id
from nnssl.data.survey import HISTOGRAM
from nnssl.data.survey_lines import body_histograms
from nnssl.data.survey_report import ScanReport
from nnssl.hu import HUPolicy
from nnssl.report import charts, left_out
from nnssl.report.charts import SHOWN_HU, STEP
from nnssl.report.thumbnails import Planes, picture
from nnssl.study.report.page import Section, Tile, Tiles, page
from nnssl.study.report.tables import Cell, Table
from nnssl.types import Spacing

REPORT, PLAN = "report.json", "plan.json"
GREYS = (-1000.0, 1000.0)  # HU that are black and white
MOST_ROWS = 2000  # of the table of scans
PERCENTILES = {5: "5 %", 50: "median", 95: "95 %"}


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
    def kept(self) -> list[dict]:
        return [line for line in self.lines if line["kept"]]

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
    scans_shown = [_tiles(collection, states, scans)]
    sections = [
        Section("What is in it", _tables(collection), [], _IN_IT, [_panels(collection)]),
        Section("Scans", [_each(collection, states)], [], _SCANS, scans_shown),
        left_out_section(collection),
    ]
    title, warnings = f"Collection {collection.name}", _look_at(collection, states)
    return page(title, _lead(collection), warnings, sections, _facts(collection), "Look at")


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
    spacing, crop = by(plan.spacing), by(plan.crop)
    values = "CT in HU" if plan.hu else "not CT: each scan is normalised by itself"
    return [
        found,
        f"{len(plan.cases)} scans are in the plan:",
        f"{spacing} mm and crops of {crop} voxels (z y x), {values}.",
    ]


def _look_at(collection: Collection, states: dict[str, str]) -> list[str]:
    """What a user should know before a training."""
    return [
        *_left_out_note(collection),
        *_orientations_note(collection),
        *_preprocessing_notes(states),
        *_changed_note(collection),
    ]


def _left_out_note(collection: Collection) -> Iterator[str]:
    if out := len(collection.left_out):
        yield f"{out} of {len(collection.lines)} are left out; see below why"


def _orientations_note(collection: Collection) -> Iterator[str]:
    orientations = Counter(line["orientation"] for line in collection.kept)
    if len(orientations) > 1:
        named = ", ".join(f"{name or 'unknown'} {n}" for name, n in orientations.most_common())
        yield f"scans are stored in {len(orientations)} orientations: {named}"


def _preprocessing_notes(states: dict[str, str]) -> Iterator[str]:
    counts = Counter(state.partition(":")[0] for state in states.values())
    if waiting := counts["not yet"]:
        yield f"{waiting} scans are not preprocessed yet; the same line continues"
    if failed := counts["failed"]:
        yield f"{failed} scans could not be preprocessed; the next run tries again"


def _changed_note(collection: Collection) -> Iterator[str]:
    if changed := sum(bool(line["note"]) for line in collection.kept):
        yield f"{changed} scans were changed in reading; the column “note” says how"


def _tables(collection: Collection) -> list[Table]:
    counts = Counter(line["orientation"] or "unknown" for line in collection.kept)
    note = "The directions in which x, y and z run as stored: LPS is a supine patient's CT."
    rows = [[name, count] for name, count in counts.most_common()]
    return [Table("", "Orientations", note, ["orientation", "scans"], rows)] if rows else []


def _each(collection: Collection, states: dict[str, str]) -> Table:
    is_hu = bool(collection.plan and collection.plan.hu)
    unit, key = ("HU", "hu") if is_hu else ("values", "value")
    percentiles = {f"{unit}, {word}": f"{key}_{n}" for n, word in PERCENTILES.items()}
    cases = collection.cases[:MOST_ROWS]
    rows = [_row(collection, case, states[case.id], list(percentiles.values())) for case in cases]
    shape = ["scan", "voxels", "spacing (mm)", "size (mm)", "orientation"]
    columns = [*shape, *percentiles, "preprocessed", "note"]
    note = "As stored, z y x. Sort by a column to find what is unlike the others."
    if len(collection.cases) > MOST_ROWS:
        note += f" The first {MOST_ROWS} of {len(collection.cases)}; report.csv has all."
    return Table("", "Each scan", note, columns, rows, dict.fromkeys(percentiles, "g"))


def _row(collection: Collection, case: Case, state: str, percentiles: list[str]) -> list[Cell]:
    """percentiles: names of the survey's columns."""
    line = collection.line_of(case)
    size = [n * mm for n, mm in zip(case.shape, case.spacing, strict=True)]
    return [
        case.id,
        by(case.shape),
        by(case.spacing, ".3g"),
        by(size, ".0f"),
        line.get("orientation", ""),
        *(line.get(name) for name in percentiles),
        state,
        line.get("note", ""),
    ]


def _tiles(collection: Collection, states: dict[str, str], most: int) -> Tiles:
    if (plan := collection.plan) is None:
        return Tiles([])
    stored = [case for case in plan.cases if states[case.id] == "stored"]
    places = np.linspace(0, len(stored) - 1, min(most, len(stored))).round().astype(int)
    return Tiles([_tile(collection, plan, stored[place]) for place in places])


def _tile(collection: Collection, plan: Plan, case: Case) -> Tile:
    orientation = collection.line_of(case).get("orientation", "")
    planes = _planes(files.inside(collection.folder, f"{case.id}.b2nd"), plan.spacing)
    limits = _grey_limits(plan) or planes.limits()
    counts = _shown_counts(collection.histogram(case))
    if counts is None:
        counts = np.histogram(planes.voxels, 112, limits)[0]
    words = filter(None, [orientation, f"{by(case.spacing, '.3g')} mm", by(case.shape)])
    made = picture(planes, counts, orientation, limits)
    return Tile(case.id, f"three planes and histogram of {case.id}", made, ", ".join(words))


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
    """Of the body's histogram, the bins of SHOWN_HU."""
    first, last = ((hu - HISTOGRAM[0]) // STEP for hu in SHOWN_HU)
    return None if counts is None else counts[first:last]


def _panels(collection: Collection) -> Tiles:
    if (plan := collection.plan) is None or not plan.cases:
        return Tiles([])
    spacing = np.array([case.spacing for case in plan.cases])
    sizes = np.array([np.multiply(case.shape, case.spacing) for case in plan.cases])
    tiles = [
        *_hu_tile(collection, plan.hu),
        Tile("", "Spacing by axis", charts.axes_panel("spacing", spacing)),
        Tile("", "Size by axis", charts.axes_panel("size", sizes)),
    ]
    return Tiles(tiles, 340)


def _hu_tile(collection: Collection, policy: HUPolicy | None) -> Iterator[Tile]:
    histograms = [h for h in map(collection.histogram, collection.cases) if h is not None]
    if policy is not None and histograms:
        alt = "Histogram of the body's HU, and the map to the network's input"
        yield Tile("", alt, charts.hu_panel(histograms, policy))


def _facts(collection: Collection) -> dict[str, str]:
    plan = collection.plan
    if plan is None:
        return {}
    values = plan.hu.describe() if plan.hu else "each scan by its own mean and std"
    lines = {
        "fingerprint": plan.fingerprint,
        "spacing": f"{plan.spacing} mm (z y x)",
        "crop": f"{plan.crop} voxels",
        "intensities": values,
    }
    return {"Plan": "\n".join(f"{name:13}{value}" for name, value in lines.items())}
