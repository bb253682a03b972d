"""The existing run in a results folder: what `--c` takes from it, and protection against
overwriting it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import address, files
from nnssl.checkpoint.describe import describe_start
from nnssl.data.plan import Plan
from nnssl.train.places import dimensions
from nnssl.train.run import FINAL, LATEST
from nnssl.train.same import changes, read_run, refuse_changes
from nnssl.types import PrintFn, Shape

if TYPE_CHECKING:
    from nnssl.train.pretrain_options import Options


@dataclass(frozen=True)
class EarlierRun:
    """What a run had derived, so that `--c` need not repeat it: numbers, crop in voxels, the
    method's settings. All is empty where there is no run.

    cases:   its scans' ids.
    encoder: the encoder's configuration, as the header has it.
    started: the header's entries on the encoder's start; {} for a random one of a preset.
    """

    run: dict = field(default_factory=dict)
    cases: list[str] | None = None
    crop: Shape = ()
    method_config: dict | None = None
    encoder: dict = field(default_factory=dict)
    started: dict = field(default_factory=dict)


def read_earlier_run(
    folder: Path, options: Options, data: Path, plan: Plan, print_fn: PrintFn
) -> EarlierRun:
    """The run in `folder` that continues, or nothing. `data` holds the preprocessed scans.

    Raises ValueError as `require_free`, and where `options` are of another run.
    """
    require_free(folder, options.resume)
    if not options.resume or not (folder / LATEST).exists():
        return EarlierRun()
    content = read_run(folder / LATEST)
    header, stored = content["header"], _stored(plan, data)
    _require_same_choices(options, header, folder)
    cases = content["training_state"].get("cases")
    cases = cases or _began_with(header["plan"]["cases"], stored, data)
    _tell_of_others(cases, stored, print_fn)
    started = {name: header[name] for name in ("start", "preset")} if "start" in header else {}
    return EarlierRun(
        header["run"],
        cases or None,
        tuple(header["crop"]),
        header["method_config"],
        header["encoder"],
        started,
    )


def _require_same_choices(options: Options, header: dict, folder: Path) -> None:
    """Raises ValueError for another method, --dims or --from: anything else is derived from them.
    What was not typed is as it was, and the file that the encoder started from is not needed.
    """
    typed: dict[str, object] = {"method": options.method}
    if options.crop or options.dims:
        typed["dims"] = dimensions(options)
    changed = changes({"method": header["method"], "dims": len(header["crop"])}, typed)
    if options.start is not None and not _is_start(options.start, header.get("start", {})):
        before = describe_start(header["start"]) if "start" in header else "not given"
        changed.append(
            f"--from: was {before}, now {address.public(str(options.start))} (leave --from out: "
            "the run continues with its own weights)"
        )
    refuse_changes(changed, folder)


def _is_start(typed: Path | str, start: dict) -> bool:
    """Whether it is the checkpoint of the header's entry `start`, by its name or its content."""
    if address.public(str(typed)) == start.get("checkpoint"):
        return True
    with suppress(OSError, ValueError):
        return files.sha256(address.local(typed)) == start.get("sha256")
    return False


def _tell_of_others(cases: list[str], stored: list[str], print_fn: PrintFn) -> None:
    if cases and set(cases) != set(stored):
        print_fn(
            f"the run continues with its original {len(cases)} scans; the collection now has "
            f"{len(stored)}"
        )


def _stored(plan: Plan, data: Path) -> list[str]:
    names = files.names_in(data)
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
