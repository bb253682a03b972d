"""From raw scans to crops in one call that can be stopped and repeated: survey, plan, preprocess."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from nnssl.data.plan import Plan, make_plan
from nnssl.data.preprocess import preprocess
from nnssl.data.scans import find_scans
from nnssl.data.survey import body_histograms, nothing_usable, survey
from nnssl.types import Shape, Spacing

STALE = 3600  # seconds after which a temporary file belongs to no living process


def prepare(
    name: str,
    folder: Path | str,
    sources: Sequence[Path | str] = (),
    nnunet_datasets: Sequence[Path | str] = (),
    spacing: Spacing | None = None,
    crop: Shape | None = None,
    num_processes: int = 2,
    part_id: int = 0,
    num_parts: int = 1,
    clip: tuple[float, float] | None = None,
    in_hu: bool = True,
) -> Plan:
    """Survey `sources` (folders) and `nnunet_datasets` (raw dataset folders), plan, and preprocess into `folder`.

    Whatever an earlier run finished is not repeated. A `plan.json` that is there already is kept when it fits
    the scans and the options, and otherwise a ValueError says what differs. Without any source the plan that
    is there is completed. Without `in_hu` the scans are not CT: nothing is asked of their values, and each is
    normalised by its own mean and sd. Raises ValueError when there is no usable scan.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    if sources or nnunet_datasets:
        how = (num_processes, part_id, num_parts)
        plan = _planned(name, folder, sources, nnunet_datasets, (spacing, crop, clip), how, in_hu)
    else:
        plan = _existing(folder)
    failed = preprocess(plan, folder, num_processes, part_id, num_parts)
    _say_failed(failed, plan)
    return plan


def _say_failed(failed: dict[str, str], plan: Plan) -> None:
    if not failed:
        return
    case, reason = next(iter(failed.items()))
    message = f"{len(failed)} of {len(plan.cases)} cases could not be preprocessed; {case}: {reason}"
    if len(failed) == len(plan.cases):
        raise ValueError(message)
    warnings.warn(f"{message}. They are left out; the next run tries them again", stacklevel=3)


def _planned(name, folder, sources, nnunet_datasets, overrides, how, in_hu) -> Plan:
    scans = find_scans(sources, nnunet_datasets)
    lines = survey(scans, folder, *how, in_hu=in_hu)
    kept = [line for line in lines if line.kept]
    if not kept:
        raise nothing_usable(lines, [*sources, *nnunet_datasets])
    plan = make_plan(name, kept, body_histograms(kept, folder) if in_hu else None, *overrides)
    path = folder / "plan.json"
    if path.exists():
        _check_same(Plan.load(path), plan, folder)
    else:
        plan.save(path)
    return plan


def _existing(folder: Path) -> Plan:
    path = folder / "plan.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist; say with -i FOLDER or -d ID where the raw scans are")
    return Plan.load(path)


def _check_same(old: Plan, new: Plan, folder: Path) -> None:
    if old.fingerprint == new.fingerprint:
        return
    before, now = ({case.id for case in plan.cases} for plan in (old, new))
    differences = [
        f"{word} {getattr(old, word)} -> {getattr(new, word)}"
        for word in ("name", "spacing", "crop", "hu")
        if getattr(old, word) != getattr(new, word)
    ]
    differences.append(f"{len(now - before)} scans new, {len(before - now)} gone, {len(now & before)} the same")
    raise ValueError(
        f"{folder / 'plan.json'} is of other scans or options: {'; '.join(differences)}. Files of two plans are "
        f"not mixed: delete {folder} to start again, choose another name to keep both, or leave out -i and -d to "
        f"go on with the old plan"
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half written, but nothing that another machine may be writing now."""
    for path in folder.rglob(".tmp-*"):
        if time.time() - path.stat().st_mtime > STALE:
            path.unlink(missing_ok=True)
