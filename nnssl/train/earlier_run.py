"""The existing run in a results folder: what `--c` takes from it, and protection against
overwriting it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnssl import checkpoint
from nnssl.data.plan import Plan
from nnssl.files import names_in
from nnssl.train.run import FINAL, LATEST
from nnssl.types import PrintFn, Shape


@dataclass(frozen=True)
class EarlierRun:
    """What a run had derived, so that `--c` need not repeat it: numbers, crop in voxels, the
    method's settings. All is empty where there is no run.

    cases: its scans' ids.
    """

    run: dict = field(default_factory=dict)
    cases: list[str] | None = None
    crop: Shape = ()
    method_config: dict | None = None


def read_earlier_run(
    folder: Path, resume: bool, data: Path, plan: Plan, print_fn: PrintFn
) -> EarlierRun:
    """The run in `folder` that continues, or nothing; ValueError as `require_free`."""
    require_free(folder, resume)
    return read_latest(folder, data, plan, print_fn) if resume else EarlierRun()


def read_latest(folder: Path, data: Path, plan: Plan, print_fn: PrintFn) -> EarlierRun:
    """Of checkpoint_latest.pth in `folder`, nothing where there is none. `data` holds the
    preprocessed scans.
    """
    if not (folder / LATEST).exists():
        return EarlierRun()
    content = checkpoint.read(folder / LATEST)
    header, stored = content["header"], _stored(plan, data)
    cases = content["training_state"].get("cases")
    cases = cases or _began_with(header["plan"]["cases"], stored, data)
    _tell_of_others(cases, stored, print_fn)
    return EarlierRun(header["run"], cases or None, tuple(header["crop"]), header["method_config"])


def _tell_of_others(cases: list[str], stored: list[str], print_fn: PrintFn) -> None:
    if cases and set(cases) != set(stored):
        print_fn(
            f"the run continues with its original {len(cases)} scans; the collection now has "
            f"{len(stored)}"
        )


def _stored(plan: Plan, data: Path) -> list[str]:
    names = names_in(data)
    return [case.id for case in plan.cases if f"{case.id}.json" in names]


def _began_with(number: int, stored: list[str], data: Path) -> list[str]:
    """The `number` scans that were stored first: checkpoints of earlier versions know no more."""
    stored_at = {case: (data / f"{case}.json").stat().st_mtime_ns for case in stored}
    first = set(sorted(stored, key=lambda case: (stored_at[case], case))[:number])
    return [case for case in stored if case in first]


def require_free(folder: Path, resume: bool) -> None:
    """Raise ValueError where a run in `folder` would be overwritten, or cannot be continued."""
    there = [name for name in (LATEST, FINAL) if (folder / name).exists()]
    if resume and there == [FINAL]:
        raise ValueError(
            f"{folder} holds a finished run ({FINAL}) without {LATEST}, from which --c would "
            "continue; a new run would overwrite it: choose another folder with -o"
        )
    if there and not resume:
        raise ValueError(
            f"{folder} already holds a run ({', '.join(there)}); add --c to continue it, or "
            "choose another folder with -o"
        )
