"""Parcels: every body voxel of a collection gets a class by its tissue and its position, without
any label.

Tissue is what the voxel and its neighbourhood measure (HU at several widths); position is where it
lies in a template to which each scan is registered (`nnssl.data.atlas`). Both together are
clustered by k-means over all scans. The classes are stored beside the preprocessed scans,
<case>.parcels.b2nd, uint8, 0 for what is no body; parcels.json says how they were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnssl.data import atlas, survey_index
from nnssl.data.crops import PARCELS, is_stored
from nnssl.data.orientation import Flips, flipped_axes
from nnssl.data.parcel_failures import (
    FAILED,
    how_to_go_on,
    read_note,
    require_enough_scans,
    require_not_failed,
    require_writable,
)
from nnssl.data.plan import Plan, is_body
from nnssl.data.preprocess import store
from nnssl.data.refusals import PassingError
from nnssl.data.scans import Found
from nnssl.data.survey_lines import orientation_of
from nnssl.data.tissue import cluster, nearest_centre, tissue_and_position
from nnssl.data.workers import Failed, parallel_map
from nnssl.files import fingerprint, inside, names_in, read_json, write_json
from nnssl.hu import HUPolicy
from nnssl.types import PrintFn, Spacing

FORMAT = 1
NOTE = "parcels.json"
ORIENTATIONS = "orientations"  # the entry of a collection that has several
MOST_CLASSES = 250  # uint8, with 0 for what is no body
SAMPLES = 600  # body voxels of each scan that the clusters are made of
FEWEST = 2  # scans


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    folder: Path
    hu: HUPolicy | None
    spacing: Spacing
    orientations: dict[str, str]  # by case; only of a collection that has several

    def volume(self, case: str) -> np.ndarray:
        """HU [Z Y X] of a preprocessed scan."""
        return atlas.hounsfield(atlas.load_volume(inside(self.folder, f"{case}.b2nd")), self.hu)

    def flips(self, case: str, template: str) -> Flips:
        """The axes that run the other way in `template`."""
        names = self.orientations
        return flipped_axes(names.get(case, ""), names.get(template, ""))

    def body(self, voxels: np.ndarray) -> np.ndarray:
        return is_body(voxels, self.hu is not None)


def make(
    folder: Path,
    plan: Plan,
    classes: int,
    num_processes: int,
    print_fn: PrintFn,
    cases: Sequence[str] | None = None,
    least: float = 0.0,
) -> list[str]:
    """Create the parcels of all preprocessed scans, unless they exist; returns the ids of the scans
    that have some.

    cases: of a run that continues; what was made for them stays, whatever scans were added since.
    least: the fraction of the scans that must have parcels.

    Scans that cannot be registered have none; they are counted, and named in parcels.json.
    Raises ValueError for a number of classes that cannot be, and TooFewRegistered where fewer than
    two scans or fewer than `least` are left; this is noted, so that no scan is registered again.
    Raises ReadOnlyCollection where parcels would have to be written in a folder that may only be
    read, before any scan is registered.
    Raises PassingError where a worker or the memory failed, and NoRoomError where the disk is full;
    neither is noted, and the next run tries again.
    """
    _check_classes(classes)
    made_for = _made_for(folder, plan, classes, cases)
    stored = made_for["stored"]
    needed = max(FEWEST, math.ceil(least * len(stored)))
    if (ready := _ready(folder, made_for, cases)) is not None:
        require_enough_scans(needed, ready, read_json(inside(folder, NOTE))["left_out"])
        return ready
    require_not_failed(folder, made_for, needed)
    require_writable(folder, classes)
    print_fn(
        f"parcels: {len(stored)} scans are being registered to one of them, a second or two each "
        f"(in {max(1, num_processes)} processes)"
    )
    work = _Work(folder, plan.hu, plan.spacing, made_for.get(ORIENTATIONS, {}))
    registered = _register(stored, work, num_processes)
    registered.require(needed, inside(folder, FAILED), made_for)
    if (ready := _ready(folder, made_for, cases)) is not None:
        return ready  # another training has made them meanwhile
    centres = cluster(np.concatenate(list(registered.rows.values())), classes)
    # Where this is stopped half-way, some labels are of these centres and some of earlier ones.
    inside(folder, NOTE).unlink(missing_ok=True)
    _label_all(registered, work, centres, num_processes)
    write_json(inside(folder, NOTE), {**made_for, **registered.note(centres)})
    if registered.left_out:
        left_out = f"{len(registered.left_out)} of {len(stored)} scans are left out"
        print_fn(f"parcels: {left_out}, see {folder / NOTE}")
    return registered.cases


def _check_classes(classes: int) -> None:
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"classes must be from 2 to {MOST_CLASSES}, got {classes}: type --set classes=64"
        )


@dataclass(frozen=True)
class _Registered:
    """The scans that were registered to `template`, each with its map and some rows [SAMPLES F] of
    tissue and position; and why others were not.
    """

    template: str
    affines: dict[str, atlas.Affine]
    rows: dict[str, np.ndarray]
    left_out: dict[str, str]

    @property
    def cases(self) -> list[str]:
        return list(self.affines)

    def require(self, needed: int, path: Path, made_for: dict) -> None:
        """Raises TooFewRegistered for fewer than `needed`, which is noted in `path`."""
        if len(self.cases) < needed:
            write_json(path, {**made_for, "cases": self.cases, "left_out": self.left_out})
        require_enough_scans(needed, self.cases, self.left_out)

    def note(self, centres: np.ndarray) -> dict:
        """What parcels.json says of how the parcels with these `centres` [classes F] were made."""
        return {
            "template": self.template,
            "cases": self.cases,
            "left_out": self.left_out,
            "centres": centres.round(5).tolist(),
            "affine": {case: asdict(affine) for case, affine in self.affines.items()},
        }


def _register(stored: Sequence[str], work: _Work, num_processes: int) -> _Registered:
    template = _template(stored, work.folder)
    function = partial(_placed, work=work, template=template)
    found = _results(function, stored, num_processes, "register")
    affines, rows, left_out = {}, {}, {}
    for case in stored:  # in the plan's order, whichever was done first
        if isinstance(found[case], str):
            left_out[case] = found[case]
        else:
            affines[case], rows[case] = found[case]
    return _Registered(template, affines, rows, left_out)


def _template(stored: Sequence[str], folder: Path) -> str:
    """The scan that the others are registered to."""
    notes = (read_json(inside(folder, f"{case}.json")) for case in stored)
    return stored[atlas.template_of([tuple(properties["shape"]) for properties in notes])]


def _label_all(found: _Registered, work: _Work, centres: np.ndarray, num_processes: int) -> None:
    """Store the parcels of all registered scans."""
    function = partial(_label, work=work, centres=centres)
    _results(function, list(found.affines.items()), num_processes, "parcels")


def preprocessed(folder: Path, plan: Plan) -> list[str]:
    """The ids of the plan's scans that are preprocessed."""
    names = names_in(folder)
    return [case.id for case in plan.cases if is_stored(case.id, names)]


def are_made(folder: Path, plan: Plan, classes: int) -> bool:
    """Whether the preprocessed scans have parcels with this number of classes."""
    return _ready(folder, _made_for(folder, plan, classes, None), None) is not None


def cases_with_parcels(folder: Path, plan: Plan) -> list[str]:
    """The ids of the plan's scans that have parcels. Raises OSError where none exist."""
    with_parcels = set(read_json(inside(folder, NOTE))["cases"])
    return [case.id for case in plan.cases if case.id in with_parcels]


def identity(folder: Path) -> str:
    """The identity that a run must find again to continue: in other parcels the same numbers mean
    other regions. Raises OSError where none exist.
    """
    metadata = read_json(inside(folder, NOTE))
    which = fingerprint([metadata["template"], metadata["centres"]])
    return f"{metadata['classes']} classes of {len(metadata['cases'])} scans ({which})"


def _placed(case: str, work: _Work, template: str) -> tuple[atlas.Affine, np.ndarray] | str:
    """What `_register_and_sample` gives; the reason where it is the scan that cannot be registered,
    which it never will.
    """
    try:
        return _register_and_sample(case, work, template)
    except atlas.RegistrationError as refusal:
        return str(refusal)


def _register_and_sample(case: str, work: _Work, template: str) -> tuple[atlas.Affine, np.ndarray]:
    """The scan's map to the template; tissue and position of some of its voxels, [SAMPLES F]."""
    voxels = work.volume(case)
    atlas.check_spread(voxels)
    flips = work.flips(case, template)
    affine = atlas.register(work.volume(template), voxels, work.spacing, flips)
    samples = _samples(case, work.body(voxels))
    return affine, tissue_and_position(voxels, affine, work.spacing)[samples]


def _samples(case: str, body: np.ndarray) -> tuple[np.ndarray, ...]:
    """Indices (z, y, x) of SAMPLES voxels of the body, the same in every run."""
    voxels = np.argwhere(body)
    if not len(voxels):
        raise atlas.RegistrationError("shows no body")
    seed = np.frombuffer(case.encode(), np.uint8).tolist()
    chosen = np.random.default_rng(seed).integers(len(voxels), size=SAMPLES)
    return tuple(voxels[chosen].T)


def _label(item: tuple[str, atlas.Affine], work: _Work, centres: np.ndarray) -> None:
    """Store the parcels of one scan."""
    case, affine = item
    voxels = work.volume(case)
    body = work.body(voxels)
    labels = np.zeros(voxels.shape, np.uint8)
    rows = tissue_and_position(voxels, affine, work.spacing)[body]
    labels[body] = 1 + nearest_centre(rows, centres)
    store(labels[None], inside(work.folder, case + PARCELS), labels.shape, np.uint8)


def _results(function: Callable, items: Sequence, num_processes: int, title: str) -> dict:
    """{item: result}. Raises at the first that failed: another try may do better, so nothing of it
    is to be noted.
    """
    results = {}
    with closing(parallel_map(function, items, num_processes, title)) as done:
        for item, result in done:
            if isinstance(result, Failed):
                case = item if isinstance(item, str) else item[0]
                raise PassingError(how_to_go_on(case, result.unless_no_room()))
            results[item] = result
    return results


def _ready(folder: Path, made_for: dict, cases: Sequence[str] | None) -> list[str] | None:
    """The scans that have parcels, where these were made for the same scans, plan and number of
    classes; of a run that continues with `cases`, where all of them have some.
    """
    metadata = read_note(inside(folder, NOTE))
    if metadata is None or not _holds(metadata, made_for, cases):
        return None
    return metadata["cases"] if _are_there(folder, metadata["cases"]) else None


def _are_there(folder: Path, cases: Sequence[str]) -> bool:
    """Whether the parcels of all of them are stored."""
    names = names_in(folder)
    return all(case + PARCELS in names for case in cases)


def _holds(metadata: dict, made_for: dict, cases: Sequence[str] | None) -> bool:
    """Whether `metadata` was made for the same; other scans do not matter where it has all of
    `cases`.
    """
    differing = {name for name, value in made_for.items() if metadata.get(name) != value}
    if cases and set(cases) <= set(metadata.get("cases", ())):
        differing -= {"stored", ORIENTATIONS}
    return not differing


def _made_for(folder: Path, plan: Plan, classes: int, cases: Sequence[str] | None) -> dict:
    there = preprocessed(folder, plan)
    if cases:
        there = [case for case in there if case in set(cases)]
    made_for = {"format": FORMAT, "plan": plan.fingerprint, "classes": classes, "stored": there}
    return made_for | _several_orientations(folder, plan, set(there))


def _several_orientations(folder: Path, plan: Plan, cases: set[str]) -> dict:
    """The entry ORIENTATIONS: {case: as the survey names it}. Empty where all scans have the same,
    so that parcels of earlier versions stay valid.
    """
    sources = {case.id: Found(case.source, case.series) for case in plan.cases if case.id in cases}
    known = survey_index.orientations(folder)  # which spares opening one file per scan
    names = {
        case: known.get(scan) or orientation_of(scan, folder) for case, scan in sources.items()
    }
    return {ORIENTATIONS: names} if len(set(names.values()) - {""}) > 1 else {}
