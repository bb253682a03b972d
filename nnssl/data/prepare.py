"""From raw scans to crops in one repeatable call: survey, plan, preprocess."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nnssl.data import orientation, patterns
from nnssl.data.hu_map import check_clip
from nnssl.data.moved import moved_cases
from nnssl.data.plan import PLAN, Plan, case_of, check_crop, check_spacing, make_plan
from nnssl.data.plan_comparison import Overrides, PlanComparison, other_kind, other_values
from nnssl.data.preprocess import forget_damaged, preprocess, require_part
from nnssl.data.scans import Found, find_scans
from nnssl.data.source_states import forget_stored, keep_states, states_of_stored
from nnssl.data.survey import nothing_usable, survey
from nnssl.data.survey_lines import LINES, body_histograms, is_same_scan
from nnssl.data.survey_report import ScanReport
from nnssl.data.unchanged import Unchanged, digest_of
from nnssl.files import STALE, sweep
from nnssl.host_memory import garbage_collection_paused
from nnssl.types import PrintFn, Shape, Spacing


@dataclass(frozen=True)
class PrepareRequest:
    """The scans of a collection called `name`, and how they are prepared in `folder`.

    sources:         folders that are searched.
    nnunet_datasets: raw dataset folders.
    spacing, crop, clip: in place of what would be derived from the scans (`make_plan`).
    in_hu:           False for scans that are not CT; their values are not checked, and each is
                     normalised by its own mean and std.
    update:          add new scans to the plan that is there.
    pattern:         which files of `sources` are scans (`patterns`); the plan keeps it, and another
                     one is taken with `update` alone.
    channels:        of the datasets, each a scan by itself; None: all.
    check:           read all that is stored, and store again what is damaged.
    """

    name: str
    folder: Path
    sources: Sequence[Path | str] = ()
    nnunet_datasets: Sequence[Path | str] = ()
    spacing: Spacing | None = None
    crop: Shape | None = None
    clip: tuple[float, float] | None = None
    num_processes: int = 2
    part_id: int = 0
    num_parts: int = 1
    in_hu: bool = True
    update: bool = False
    pattern: Sequence[str] = ()
    channels: Sequence[int] | None = (0,)
    check: bool = False
    print_fn: PrintFn = print

    @property
    def overrides(self) -> Overrides:
        return self.spacing, self.crop, self.clip

    @property
    def workers(self) -> tuple[int, int, int]:
        """Number of processes, part of the scans, number of parts."""
        return self.num_processes, self.part_id, self.num_parts

    def require_possible(self) -> None:
        """Raise ValueError for overrides that no plan can have."""
        if self.spacing is not None:
            check_spacing(self.spacing)
        if self.crop is not None:
            check_crop(self.crop)
        if self.clip is not None:
            check_clip(self.clip)

    @property
    def plan_file(self) -> Path:
        return self.folder / PLAN

    @property
    def searched(self) -> tuple[Path | str, ...]:
        return (*self.sources, *self.nnunet_datasets)


def prepare(request: PrepareRequest) -> Plan:
    """Survey the scans of `request`, plan, and preprocess them into its folder.

    Whatever an earlier run finished is not repeated. A `plan.json` that is there already is kept:
    scans that were added, removed or changed since are reported through `print_fn`. With `update`
    the new ones are added, preprocessed as the plan says; with `update` and `check` those that were
    rewritten with the same shape and spacing are preprocessed again. Scans are known by their path,
    or by their path below `sources` where these lie elsewhere now. Without any source the plan
    that is there is completed.

    Raises ValueError where options are impossible or differ from the plan, where no scan is of the
    plan, and where there is no usable scan.
    """
    require_part(request.part_id, request.num_parts)
    request.require_possible()
    folder = request.folder
    folder.mkdir(parents=True, exist_ok=True)
    if request.plan_file.exists() and not os.access(folder, os.W_OK) and not request.update:
        return _read_only(request)
    sweep(folder, folder / LINES, older=STALE)
    with _removed_if_empty(folder):
        plan, moved = _plan_and_moved_scans(request)
    if request.check:
        _forget_damaged(plan, request)
    failed = preprocess(plan, folder, *request.workers, moved)
    _say_failed(failed, plan)
    return plan


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """After an error, such as for a wrong -i, no empty collection is left."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _read_only(request: PrepareRequest) -> Plan:
    """The plan of a folder that may only be read."""
    folder = request.folder
    if request.check:
        raise ValueError(
            f"--check rewrites damaged scans, but {folder} is read-only: leave --check out"
        )
    request.print_fn(f"{folder} is read-only: its plan and preprocessed scans are used as they are")
    return _existing_plan(request)


def _forget_damaged(plan: Plan, request: PrepareRequest) -> None:
    damaged = forget_damaged(plan, request.folder, *request.workers)
    names = ", ".join(damaged[:5])
    stored = (
        f"{len(damaged)} preprocessed scans are damaged, and will be preprocessed again if "
        f"their raw scans are whole: {names}"
    )
    request.print_fn(stored if damaged else "no preprocessed scan is damaged")


def _say_failed(failed: dict[str, str], plan: Plan) -> None:
    if not failed:
        return
    case, reason = next(iter(failed.items()))
    message = (
        f"{len(failed)} of {len(plan.cases)} cases could not be preprocessed; {case}: {reason}"
    )
    if len(failed) == len(plan.cases):
        raise ValueError(message)
    warnings.warn(f"{message}. They are left out; the next run will try them again", stacklevel=3)


def _plan_and_moved_scans(request: PrepareRequest) -> tuple[Plan, dict[str, str]]:
    """The plan, and the new locations of its scans that have moved."""
    if request.searched:
        return _plan_from_survey(request)
    if request.update:
        raise ValueError(
            "--update adds new scans to the plan: give their location with -i FOLDER or -d ID"
        )
    return _existing_plan(request), {}


def _plan_from_survey(request: PrepareRequest) -> tuple[Plan, dict[str, str]]:
    """The plan of the current scans, saved; and the new locations of those that have moved."""
    pattern = patterns.checked_globs(request.pattern)
    unchanged = Unchanged(request.folder, request.searched)
    old = Plan.load(request.plan_file) if request.plan_file.exists() else None
    if old is not None:
        _check_options(old, request, () if request.update else pattern)
        pattern = pattern or old.pattern
    scans = find_scans(request.sources, request.nnunet_datasets, request.channels, pattern)
    digest = digest_of(scans)
    if old is not None and not request.update and (said := unchanged.said(digest)) is not None:
        for text in said:
            request.print_fn(text)
        return old, {}
    said = []
    request = replace(request, print_fn=_also(said, request.print_fn))
    moved = {} if old is None else _adopted(old, scans, request)
    lines = _surveyed(scans, request, is_new=old is None)
    plan = _plan_of(lines, old, moved, pattern, request)
    if plan != old:
        plan.save(request.plan_file)
    keep_states(request.folder, PlanComparison.of(plan, lines, moved, request.folder).states)
    if not request.update:
        unchanged.keep(digest, plan, lines, said)
    return plan, moved


def _plan_of(
    lines: Sequence[ScanReport],
    old: Plan | None,
    moved: dict[str, str],
    pattern: tuple[str, ...],
    request: PrepareRequest,
) -> Plan:
    """A new plan of the survey's `lines`, or the old one compared with them."""
    kept = [line for line in lines if line.kept]
    plan = _new_plan(kept, request) if old is None else _kept_plan(old, kept, moved, request)
    return plan if pattern == plan.pattern else replace(plan, pattern=pattern)


def _also(said: list[str], print_fn: PrintFn) -> PrintFn:
    """Print, and keep what was printed in `said`."""

    def say(text: str) -> None:
        said.append(text)
        print_fn(text)

    return say


def _new_plan(kept: Sequence[ScanReport], request: PrepareRequest) -> Plan:
    histograms = body_histograms(kept, request.folder) if request.in_hu else None
    return make_plan(request.name, kept, histograms, *request.overrides)


def _adopted(old: Plan, scans: Sequence[Found], request: PrepareRequest) -> dict[str, str]:
    """{source in the plan: path now} of the scans that have moved, and are the same."""
    return {
        case.source: now.path
        for case, now in moved_cases(old, scans, request.searched)
        if is_same_scan(Found(case.source, case.series), now, request.folder)
    }


def _surveyed(scans: Sequence[Found], request: PrepareRequest, is_new: bool) -> list[ScanReport]:
    """The survey's lines. Raises ValueError if no scan is kept; without any there is no survey."""
    if not scans:
        raise nothing_usable([], request.searched)
    lines = survey(scans, request.folder, *request.workers, request.in_hu, histograms=is_new)
    if not any(line.kept for line in lines):
        raise nothing_usable(lines, request.searched)
    kept = (line.orientation for line in lines if line.kept)
    if mixed := orientation.describe_mixture(kept):
        request.print_fn(mixed)
    return lines


@garbage_collection_paused()
def _kept_plan(
    old: Plan, kept: Sequence[ScanReport], moved: dict[str, str], request: PrepareRequest
) -> Plan:
    """The existing plan, with the new scans if `update` is set; prints the differences.

    Raises ValueError when no scan of the plan is among those that are there now.
    """
    folder = request.folder
    compared = PlanComparison.of(old, kept, moved, folder, states_of_stored(folder))
    _check_any_known(compared, request)
    _say_moved(compared, request)
    _say_differences(compared, request)
    return _updated(old, compared, request) if request.update else old


def _say_moved(compared: PlanComparison, request: PrepareRequest) -> None:
    if same := len(compared.moved) - len(compared.replaced):
        request.print_fn(f"{same} scans of the plan have moved; their contents are unchanged")
    if others := len(compared.replaced):
        request.print_fn(
            f"{others} scans have the names and sizes of scans of the plan that are gone, but "
            "other contents; they count as rewritten"
        )


def _check_any_known(compared: PlanComparison, request: PrepareRequest) -> None:
    if not compared.both and not request.update:
        raise ValueError(
            f"{request.plan_file} was made for other scans: none of its {len(compared.before)} is "
            f"among the {len(compared.now)} that were found. Choose another name with --name, add "
            "these scans with --update, or leave out -i and -d to continue with the old plan"
        )


def _updated(old: Plan, compared: PlanComparison, request: PrepareRequest) -> Plan:
    """The plan with the new scans. With `check` what is stored of rewritten ones is removed: not
    without, since a copy has another time of change too, and others may train on it.
    """
    new, rewritten = compared.new, compared.rewritten if request.check else []
    forget_stored(request.folder, rewritten)
    again = f"; {len(rewritten)} scans are stored again" if rewritten else ""
    request.print_fn(
        f"--update: {len(new)} scans added to the plan, which now has "
        f"{len(compared.before) + len(new)}{again}"
    )
    return old.with_added([case_of(line) for line in new]) if new else old


def _say_differences(compared: PlanComparison, request: PrepareRequest) -> None:
    """Print the differences between the plan and the current scans, if any."""
    if not (differences := compared.describe()):
        return
    cure = compared.cure(request.update, request.check and request.update)
    request.print_fn(
        f"{request.plan_file} is kept, with its {len(compared.before)} scans, spacing, HU range "
        f"and crop. Scans there now: {differences}{cure}"
    )


def _check_options(old: Plan, request: PrepareRequest, pattern: tuple[str, ...]) -> None:
    """Raise ValueError where an option differs from what the plan has."""
    if differences := [
        *other_values(old, request.overrides),
        *other_kind(old, request.in_hu, pattern),
    ]:
        raise ValueError(
            f"{request.plan_file} has {'; '.join(differences)}. Files of two plans are never "
            "mixed: leave the option out to continue with the plan, choose another name with "
            f"--name to keep both, or delete {request.folder} to start again"
        )


def _existing_plan(request: PrepareRequest) -> Plan:
    """The plan, of which no option may differ. Where the collection is named alone, nothing says
    its modality but --no-hu.
    """
    path = request.plan_file
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give the location of the raw scans with -i FOLDER or -d ID"
        )
    old = Plan.load(path)
    in_hu = request.in_hu and (bool(request.searched) or old.hu is not None)
    _check_options(old, replace(request, in_hu=in_hu), patterns.checked_globs(request.pattern))
    return old
