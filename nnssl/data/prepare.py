"""From raw scans to crops in one call that can be stopped and repeated: survey, plan, preprocess."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nnssl.data import orientation, patterns
from nnssl.data.moved import moved_cases
from nnssl.data.plan import Plan, case_of, make_plan
from nnssl.data.preprocess import forget_damaged, preprocess
from nnssl.data.scans import Found, find_scans
from nnssl.data.survey import ScanReport, adopt, body_histograms, nothing_usable, survey
from nnssl.files import sweep
from nnssl.memory import uncollected
from nnssl.types import Shape, Spacing

# spacing, crop and HU range where they are asked for by name
Overrides = tuple["Spacing | None", "Shape | None", "tuple[float, float] | None"]
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
    update: bool = False,
    pattern: Sequence[str] = (),
    say: Callable[[str], None] = print,
    channels: Sequence[int] | None = (0,),
    check: bool = False,
) -> Plan:
    """Survey `sources` (folders) and `nnunet_datasets` (raw dataset folders), plan, and preprocess
    into `folder`; of the datasets `channels` (None: all), each a scan by itself.

    Whatever an earlier run finished is not repeated. A `plan.json` that is there already is kept:
    scans that came, went or changed since are reported through `say`, and with `update` those that came
    are taken in, preprocessed as the plan says. Scans are known by their path, or by their path
    below `sources` where these lie elsewhere now. A ValueError says what is asked for otherwise
    than planned, or that no scan is of the plan. Without any source the plan that is there is
    completed. `pattern` says which files of `sources` are scans (`patterns`); the plan keeps it,
    and another one is taken with `update` alone. Without `in_hu` the scans are not CT: nothing is
    asked of their values, and each is normalised by its own mean and std. With `check` all that is
    stored is read, and what is damaged is stored again. Raises ValueError when
    there is no usable scan.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "plan.json").exists() and not os.access(folder, os.W_OK) and not update:
        if check:
            raise ValueError(
                f"--check stores damaged scans again, and {folder} may only be read: leave it out"
            )
        say(
            f"{folder} may only be read: its plan and what is preprocessed there are taken as they "
            "are"
        )
        plan = _existing(folder)
        _check_options(plan, (spacing, crop, clip), in_hu, patterns.check(pattern), folder)
        return plan
    sweep(folder, older=STALE)
    moved: dict[str, str] = {}
    if sources or nnunet_datasets:
        how = (num_processes, part_id, num_parts)
        overrides = (spacing, crop, clip)
        plan, moved = _planned(
            name,
            folder,
            sources,
            nnunet_datasets,
            overrides,
            how,
            in_hu,
            update,
            pattern,
            channels,
            say,
        )
    elif update:
        raise ValueError(
            "--update takes new scans into the plan: say with -i FOLDER or -d ID where they are"
        )
    else:
        plan = _existing(folder)
    if check:
        damaged = forget_damaged(plan, folder, num_processes, part_id, num_parts)
        names = ", ".join(damaged[:5])
        stored = f"{len(damaged)} preprocessed scans are damaged and are stored again: {names}"
        say(stored if damaged else "no preprocessed scan is damaged")
    failed = preprocess(plan, folder, num_processes, part_id, num_parts, moved)
    _say_failed(failed, plan)
    return plan


def _say_failed(failed: dict[str, str], plan: Plan) -> None:
    if not failed:
        return
    case, reason = next(iter(failed.items()))
    message = (
        f"{len(failed)} of {len(plan.cases)} cases could not be preprocessed; {case}: {reason}"
    )
    if len(failed) == len(plan.cases):
        raise ValueError(message)
    warnings.warn(f"{message}. They are left out; the next run tries them again", stacklevel=3)


def _planned(
    name: str,
    folder: Path,
    sources: Sequence[Path | str],
    datasets: Sequence[Path | str],
    overrides: Overrides,
    how: tuple[int, int, int],
    in_hu: bool,
    update: bool,
    pattern: Sequence[str],
    channels: Sequence[int] | None,
    say: Callable[[str], None],
) -> tuple[Plan, dict[str, str]]:
    """The plan, and where those of its scans are now that have moved."""
    path, pattern = folder / "plan.json", patterns.check(pattern)
    old, moved = None, {}
    if path.exists():
        old = Plan.load(path)
        _check_options(old, overrides, in_hu, () if update else pattern, folder)
        pattern = pattern or old.pattern
    scans = find_scans(sources, datasets, channels, pattern)
    if old is not None:
        for case, now in moved_cases(old, scans, [*sources, *datasets]):
            if adopt(Found(case.source, case.series), now, folder):
                moved[case.source] = now.path
    lines = survey(scans, folder, *how, in_hu=in_hu, planned=old is not None)
    kept = [line for line in lines if line.kept]
    if not kept:
        raise nothing_usable(lines, [*sources, *datasets])
    if mixed := orientation.describe_mixture(line.orientation for line in kept):
        say(mixed)
    if old is None:
        plan = make_plan(name, kept, body_histograms(kept, folder) if in_hu else None, *overrides)
    else:
        plan = _kept_plan(old, kept, moved, folder, update, say)
    plan = replace(plan, pattern=pattern)
    if plan != old:
        plan.save(path)
    return plan, moved


@uncollected()
def _kept_plan(
    old: Plan,
    kept: Sequence[ScanReport],
    moved: dict[str, str],
    folder: Path,
    update: bool,
    say: Callable[[str], None],
) -> Plan:
    """The plan that is there, with the new scans where `update` asks for them; says what differs.

    Raises ValueError when no scan of the plan is among those that are there now.
    """
    before = {(moved.get(case.source, case.source), case.series): case for case in old.cases}
    now = {(line.path, line.series): line for line in kept}
    new = [now[key] for key in sorted(now.keys() - before.keys())]
    there = now.keys() & before.keys()
    changed = sum(
        (now[key].shape, now[key].spacing) != (before[key].shape, before[key].spacing)
        for key in there
    )
    gone = len(before) - len(there)
    if not there and not update:
        raise ValueError(
            f"{folder / 'plan.json'} is of other scans: none of its {len(before)} is among the "
            f"{len(now)} that were found. Choose another name with --name, type --update to take "
            "these in as well, or leave out -i and -d to continue with the old plan"
        )
    if moved:
        say(
            f"{sum(case.source in moved for case in old.cases)} scans of the plan have moved, and "
            "are the same"
        )
    differences = [f"{number} {word}" for number, word in (
        (len(new), "new"), (gone, "gone (what is preprocessed of them stays in use)"),
        (changed, "changed (what is preprocessed of them stays in use)"),
    ) if number]  # fmt: skip
    if differences:
        say(
            f"{folder / 'plan.json'} is kept, with its {len(before)} scans, spacing, HU range and "
            f"crop. Scans there now: {', '.join(differences)}"
            + ("" if update or not new else "; --update takes the new ones in")
        )
    if update:
        say(
            f"--update: {len(new)} scans are taken into the plan, {len(before) + len(new)} are in "
            "it now"
        )
    return old.with_added([case_of(line) for line in new]) if update and new else old


def _check_options(
    old: Plan, overrides: Overrides, in_hu: bool, pattern: tuple, folder: Path
) -> None:
    """Raise ValueError where what is asked for by name is not what the plan has."""
    spacing, crop, clip = overrides
    has = {
        "spacing": old.spacing,
        "crop": old.crop,
        "HU range": old.hu and (old.hu.low, old.hu.high),
    }
    given = {"spacing": spacing, "crop": crop, "HU range": clip}
    differences = [
        f"{word} {has[word]}, asked for {tuple(value)}"
        for word, value in given.items()
        if value is not None and has[word] != tuple(map(float, value))
    ]
    if pattern and pattern != old.pattern:
        has_one = f"--pattern {' '.join(old.pattern)}" if old.pattern else "no --pattern"
        differences.append(f"{has_one}, asked for {' '.join(pattern)} (--update changes it)")
    if in_hu != (old.hu is not None):
        differences.append("scans in HU" if old.hu else "scans that are not in HU (--no-hu)")
    if differences:
        raise ValueError(
            f"{folder / 'plan.json'} has {'; '.join(differences)}. Files of two plans are not "
            "mixed: leave the option out to continue with the plan, choose another name with "
            f"--name to keep both, or delete {folder} to start again"
        )


def _existing(folder: Path) -> Plan:
    path = folder / "plan.json"
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; say with -i FOLDER or -d ID where the raw scans are"
        )
    return Plan.load(path)
