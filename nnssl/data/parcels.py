"""Parcels: every body voxel of a collection gets a class by its tissue and its place, without any
label.

Tissue is what the voxel and its neighbourhood measure (HU at several widths); place is where it
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

from nnssl.data import atlas
from nnssl.data.crops import PARCELS
from nnssl.data.plan import Plan
from nnssl.data.preprocess import store
from nnssl.data.workers import Failed, parallel_map
from nnssl.files import fingerprint, inside, names_in, read_json, write_json
from nnssl.types import BODY_HU, HUPolicy, Spacing

FORMAT = 1
NOTE = "parcels.json"
FAILED = "parcels_failed.json"  # for what they were tried, and which scans could not be registered
MOST_CLASSES = 250  # uint8, with 0 for what is no body
SAMPLES = 600  # body voxels of each scan that the clusters are made of
PLACE_MM = 40.0  # of a place that weighs as much as one unit of tissue
FEWEST = 2  # scans


class TooFewRegistered(ValueError):
    """Too few scans could be registered to one another for parcels to be made."""


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    folder: Path
    hu: HUPolicy | None
    spacing: Spacing

    def volume(self, case: str) -> np.ndarray:
        """HU [Z Y X] of a preprocessed scan."""
        return atlas.hounsfield(atlas.load(inside(self.folder, f"{case}.b2nd")), self.hu)

    def body(self, voxels: np.ndarray) -> np.ndarray:
        return voxels > (BODY_HU if self.hu is not None else 0.0)


def make(
    folder: Path,
    plan: Plan,
    classes: int,
    num_processes: int,
    say: Callable[[str], None],
    cases: Sequence[str] | None = None,
    least: float = 0.0,
) -> list[str]:
    """Make the parcels of all preprocessed scans, unless they are there; the ids of the scans that
    have some.

    cases: of a run that continues; what was made for them stays, whatever scans were added since.
    least: the fraction of the scans that must have parcels.

    Scans that cannot be registered have none; they are counted, and named in parcels.json.
    Raises ValueError for a number of classes that cannot be, and TooFewRegistered where fewer than
    two scans or fewer than `least` are left; this is noted, so that no scan is registered again.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"classes must be from 2 to {MOST_CLASSES}, got {classes}: --set classes=64"
        )
    made_for = _made_for(folder, plan, classes, cases)
    stored = made_for["stored"]
    needed = max(FEWEST, math.ceil(least * len(stored)))
    if (ready := _ready(folder, made_for, cases)) is not None:
        _require(needed, ready, read_json(inside(folder, NOTE))["left_out"])
        return ready
    _require_not_failed(folder, made_for, needed)
    say(
        f"parcels: {len(stored)} scans are registered to one of them, a second or two each "
        f"(in {max(1, num_processes)} processes)"
    )
    work = _Work(folder, plan.hu, plan.spacing)
    shapes = [tuple(read_json(inside(folder, f"{case}.json"))["shape"]) for case in stored]
    template = stored[atlas.template_of(shapes)]
    found = _results(
        partial(_place, work=work, template=template), stored, num_processes, "register"
    )
    affines, rows, failed = {}, [], {}
    for case in stored:  # in the plan's order, whichever was done first
        if isinstance(found[case], Failed):
            failed[case] = found[case].reason
        else:
            affines[case], sampled = found[case]
            rows.append(sampled)
    if len(affines) < needed:
        write_json(inside(folder, FAILED), {**made_for, "cases": list(affines), "left_out": failed})
    _require(needed, list(affines), failed)
    centres = cluster(np.concatenate(rows), classes)
    done = _results(
        partial(_label, work=work, centres=centres), list(affines.items()), num_processes, "parcels"
    )
    failed |= {
        case: result.reason for (case, _), result in done.items() if isinstance(result, Failed)
    }
    kept = [case for case in affines if case not in failed]
    note = {
        "template": template,
        "cases": kept,
        "left_out": failed,
        "centres": centres.round(5).tolist(),
    }
    affine = {case: asdict(affines[case]) for case in kept}
    write_json(inside(folder, NOTE), {**made_for, **note, "affine": affine})
    if failed:
        say(f"parcels: {len(failed)} of {len(stored)} scans are left out, see {folder / NOTE}")
    _require(needed, kept, failed)
    return kept


def preprocessed(folder: Path, plan: Plan) -> list[str]:
    """The ids of the plan's scans that are preprocessed."""
    names = names_in(folder)
    return [case.id for case in plan.cases if f"{case.id}.b2nd" in names]


def are_made(folder: Path, plan: Plan, classes: int) -> bool:
    """Whether the preprocessed scans have parcels of so many classes."""
    return _ready(folder, _made_for(folder, plan, classes, None), None) is not None


def cases(folder: Path, plan: Plan) -> list[str]:
    """The ids of the plan's scans that have parcels. Raises OSError where none were made."""
    made = set(read_json(inside(folder, NOTE))["cases"])
    return [case.id for case in plan.cases if case.id in made]


def identity(folder: Path) -> str:
    """What a run must find again to continue: of parcels made otherwise the numbers mean other
    places. Raises OSError where none were made.
    """
    note = read_json(inside(folder, NOTE))
    which = fingerprint([note["template"], note["centres"]])
    return f"{note['classes']} classes of {len(note['cases'])} scans ({which})"


def features(voxels: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Tissue at each voxel of a scan in HU [Z Y X]: float32 [Z Y X 5].

    Soft tissue (-175 to 250 HU, in units of 110) and bone (150 to 700, in units of 200) at the
    voxel, both over their neighbourhood, and how much soft tissue varies there.
    """
    from scipy.ndimage import gaussian_filter

    def wide(image: np.ndarray, mm: float) -> np.ndarray:
        return gaussian_filter(image, [mm / step for step in spacing])

    soft = np.clip(voxels, -175, 250).astype(np.float32) / 110
    bone = np.clip(voxels, 150, 700).astype(np.float32) / 200
    mean = wide(soft, 6.0)
    varies = np.sqrt(np.maximum(wide(soft**2, 6.0) - mean**2, 0))
    local = [
        wide(soft, 2.5),
        0.8 * wide(bone, 2.5),
        0.8 * wide(soft, 8.0),
        0.8 * wide(bone, 10.0),
        0.8 * varies,
    ]
    return np.stack(local, axis=-1)


def cluster(rows: np.ndarray, classes: int) -> np.ndarray:
    """The centres [classes F] of k-means over `rows` [N F]; the same for the same rows."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        classes,
        random_state=0,
        n_init=2,  # pyright: ignore[reportArgumentType] scikit-learn declares no types
        batch_size=8192,
    ).fit(rows)
    return np.asarray(means.cluster_centers_, np.float32)


def nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of `centres` [K F] to each of `rows` [N F]: int [N]."""
    squares = (centres**2).sum(axis=1)
    parts = (rows[first : first + 65536] for first in range(0, len(rows), 65536))
    return np.concatenate([(squares - 2 * part @ centres.T).argmin(axis=1) for part in parts])


def _place(case: str, work: _Work, template: str) -> tuple[atlas.Affine, np.ndarray]:
    """The scan's map to the template, and tissue and place of some of its voxels: [SAMPLES F]."""
    voxels = work.volume(case)
    atlas.check_spread(voxels)
    affine = atlas.register(work.volume(template), voxels, work.spacing)
    body = np.argwhere(work.body(voxels))
    if not len(body):
        raise atlas.RegistrationError("shows no body")
    seed = np.frombuffer(case.encode(), np.uint8).tolist()
    chosen = tuple(body[np.random.default_rng(seed).integers(len(body), size=SAMPLES)].T)
    return affine, _rows(voxels, affine, work.spacing)[chosen]


def _label(item: tuple[str, atlas.Affine], work: _Work, centres: np.ndarray) -> None:
    """Store the parcels of one scan."""
    case, affine = item
    voxels = work.volume(case)
    body = work.body(voxels)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[body] = 1 + nearest(_rows(voxels, affine, work.spacing)[body], centres)
    store(labels[None], inside(work.folder, case + PARCELS), labels.shape, np.uint8)


def _rows(voxels: np.ndarray, affine: atlas.Affine, spacing: Spacing) -> np.ndarray:
    """Tissue and place of each voxel: [Z Y X 8]."""
    places = affine.places(voxels.shape, spacing) / PLACE_MM
    return np.concatenate([features(voxels, spacing), places], axis=-1)


def _results(function: Callable, items: list, num_processes: int, title: str) -> dict:
    with closing(parallel_map(function, items, num_processes, title)) as done:
        return dict(done)


def _ready(folder: Path, made_for: dict, cases: Sequence[str] | None) -> list[str] | None:
    """The scans that have parcels, where these were made for the same scans, plan and number of
    classes; of a run that continues with `cases`, where all of them have some.
    """
    try:
        note = read_json(inside(folder, NOTE))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict):
        return None
    same = {name for name, value in made_for.items() if note.get(name) == value}
    enough = cases and set(cases) <= set(note.get("cases", ()))
    if made_for.keys() - same - ({"stored"} if enough else set()):
        return None
    names = names_in(folder)
    there = all(case + PARCELS in names for case in note["cases"])
    return note["cases"] if there else None


def _made_for(folder: Path, plan: Plan, classes: int, cases: Sequence[str] | None) -> dict:
    there = preprocessed(folder, plan)
    if cases:
        there = [case for case in there if case in set(cases)]
    return {"format": FORMAT, "plan": plan.fingerprint, "classes": classes, "stored": there}


def _require_not_failed(folder: Path, made_for: dict, needed: int) -> None:
    """Raises TooFewRegistered where the same scans were tried before; classes do not matter."""
    try:
        note = read_json(inside(folder, FAILED))
    except (OSError, ValueError):
        return
    if not isinstance(note, dict):
        return
    same = all(note.get(name) == made_for[name] for name in ("format", "plan", "stored"))
    if same and isinstance(note.get("cases"), list) and isinstance(note.get("left_out"), dict):
        _require(needed, note["cases"], note["left_out"])


def _require(needed: int, cases: Sequence[str], failed: dict) -> None:
    if len(cases) < needed:
        first = next((f" (the first that could not: {reason})" for reason in failed.values()), "")
        raise TooFewRegistered(
            f"{len(cases)} of {len(cases) + len(failed)} scans could be registered to one another, "
            f"{needed} are needed{first}"
        )
