"""Few-shot splits: more entries in nnU-Net's splits_final.json, behind the existing ones, which
never change.

An entry is nnU-Net's own {"train", "val"} with a third key, `nnssl_study`, that says whose it is;
nnU-Net reads the first two. For one seed the subsets are nested: a smaller budget's cases are among
a larger one's. Cases of one subject are taken all or none, so that a budget may be used up not
quite, and none is trained on whose subject is validated on.
"""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.study import file_lock
from nnssl.study.design.description import ALL, REST, Budget, Study, Task
from nnssl.study.rows import grouped

FILE, OWNER = "splits_final.json", "nnssl_study"
FOLDS, FOLD_SEED = 5, 12345  # nnU-Net's own

Labels = Mapping[str, frozenset]  # case -> the labels that occur in it
Key = tuple[Budget, int]  # with the seed
Cases = tuple[tuple[str, ...], tuple[str, ...]]  # to train and to validate on


class SplitError(ValueError):
    """The requested subset does not exist; the message names one that does."""


@dataclass(frozen=True)
class Split:
    """The cases of one run, and which entry of splits_final.json (nnU-Net's "fold") holds them."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]


def append(path: Path, study: Study, task: Task, labels: Labels) -> dict[Key, Split]:
    """Add what is missing to the file at `path`; the splits of all budgets and seeds. A second call
    changes nothing.

    Where there is no file yet, nnU-Net's own five folds are written first (by subject where the
    task has subjects). Raises SplitError.
    """
    # two studies may share a dataset: one writes after the other
    with file_lock.exclusive(path.with_name(f".{path.name}.lock")):
        stored = read(path) if path.is_file() else None
        entries = first_folds(sorted(labels), task.subject) if stored is None else list(stored)
        found = {
            key: Split(_add(entries, _split_entry(study, task, key, cases)), *cases)
            for key, cases in wanted(entries, study, task, labels).items()
        }
        if entries != stored:
            files.write_json(path, entries)
        return found


def read(path: Path) -> list[dict]:
    """The entries of the file at `path`. Raises SplitError where they are no lists of cases."""
    entries = files.read_json(path)
    if not (isinstance(entries, list) and all(map(_is_entry, entries))):
        raise SplitError(
            f'{path} must be a list of entries {{"train": [...], "val": [...]}} with the names of '
            "cases, as nnU-Net writes it; correct it, or remove it and type the same command again"
        )
    return entries


def _is_entry(entry: object) -> bool:
    cases = [entry.get(part) for part in ("train", "val")] if isinstance(entry, dict) else []
    return bool(cases) and all(
        isinstance(part, list) and all(isinstance(case, str) for case in part) for part in cases
    )


def _add(entries: list[dict], entry: dict) -> int:
    """The place of an entry, which is added behind the others where it is missing."""
    if entry not in entries:
        entries.append(entry)
    return entries.index(entry)


def _split_entry(study: Study, task: Task, key: Key, cases: Cases) -> dict:
    budget, seed = key
    train, val = cases
    owner = {"study": study.name, "task": task.name, "budget": budget, "seed": seed}
    return {"train": list(train), "val": list(val), OWNER: owner}


def wanted(folds: Sequence[Mapping], study: Study, task: Task, labels: Labels) -> dict[Key, Cases]:
    """Training and validation cases by budget and seed, of the `folds` that are in the file. Raises
    SplitError.
    """
    found = {}
    for seed in study.seeds:
        if task.validate == REST:
            found |= _on_the_rest(study, task, labels, seed)
        else:
            found |= _on_a_fold(folds, study, task, labels, seed)
    return found


def _on_a_fold(
    folds: Sequence[Mapping], study: Study, task: Task, labels: Labels, seed: int
) -> dict[Key, Cases]:
    """As `wanted`, for one seed: validated on a fold of nnU-Net's."""
    fold = _nnunet_fold(folds, task, seed if study.by_fold else task.fold)
    _require_stored(fold, labels, task)
    val = tuple(fold["val"])
    pool = without_validation_subjects(fold["train"], val, task.subject)
    order = nested_order(pool, labels, task.subject, f"{task.name} {seed}")
    return {
        (budget, seed): (take(order, budget, labels, task.name), val) for budget in study.budgets
    }


def _require_stored(fold: Mapping, labels: Labels, task: Task) -> None:
    if absent := [case for case in (*fold["train"], *fold["val"]) if case not in labels]:
        raise SplitError(
            f"task {task.name}: {FILE} names {len(absent)} case(s) that are not preprocessed for "
            f"{task.configuration}: {', '.join(absent[:5])}. Preprocess them, or correct that file"
        )


def _nnunet_fold(folds: Sequence[Mapping], task: Task, number: int) -> Mapping:
    if number >= len(folds) or OWNER in folds[number]:
        own = sum(OWNER not in entry for entry in folds)
        raise SplitError(
            f"task {task.name}: no fold {number} in {FILE}; allowed are 0 to {own - 1}"
        )
    return folds[number]


def _on_the_rest(study: Study, task: Task, labels: Labels, seed: int) -> dict[Key, Cases]:
    """As `wanted`, for one seed: drawn of all cases, and validated on those that not even the
    largest budget trains on.
    """
    order = nested_order(sorted(labels), labels, task.subject, f"{task.name} {seed}")
    trained = {budget: take(order, budget, labels, task.name) for budget in study.budgets}
    most = max(study.budgets)
    if not (val := tuple(sorted(labels.keys() - set(trained[most])))):
        raise SplitError(
            f"task {task.name}: a budget of {most} cases leaves no case for validation"
        )
    return {(budget, seed): (train, val) for budget, train in trained.items()}


def without_validation_subjects(
    train: Sequence[str], val: Sequence[str], subject: str | None
) -> list[str]:
    """`train` without the cases of subjects that are in `val`."""
    validated = {subject_of(case, subject) for case in val}
    return [case for case in train if subject_of(case, subject) not in validated]


def subject_of(case: str, subject: str | None) -> str:
    """What the regular expression finds in the case's name: its first group, or all of it. None:
    the case itself.

    Raises SplitError where it finds nothing.
    """
    if subject is None:
        return case
    if not (match := re.search(subject, case)):
        raise SplitError(f"subject {subject!r} does not match the case name {case!r}")
    return match.group(1) if match.groups() else match.group()


def nested_order(
    pool: Sequence[str], labels: Labels, subject: str | None, seed: str
) -> list[tuple[str, ...]]:
    """The subjects of `pool`, each as its cases, so that any prefix is a subset: shuffled by
    `seed`, and before the others come as few as cover all labels (greedily: the first of those that
    add most).
    """
    shuffled = list(grouped(sorted(pool), lambda case: subject_of(case, subject)).values())
    random.Random(seed).shuffle(shuffled)
    first = _cover(shuffled, labels)
    others = [cases for cases in shuffled if cases not in first]
    return [tuple(cases) for cases in first + others]


def _cover(groups: Sequence[list[str]], labels: Labels) -> list[list[str]]:
    """Groups that hold all labels: each the first of those that add most to those before it."""
    cover = []
    missing = _labels_in_groups(groups, labels)
    while missing:
        best = max(groups, key=lambda cases: len(_labels_in_groups([cases], labels) & missing))
        cover.append(best)
        missing -= _labels_in_groups([best], labels)
    return cover


def take(
    order: Sequence[Sequence[str]], budget: Budget, labels: Labels, task: str
) -> tuple[str, ...]:
    """The longest prefix of at most `budget` cases. Raises SplitError where it lacks a label that
    `order` holds.
    """
    total = sum(map(len, order))
    if isinstance(budget, int) and budget > total:
        raise SplitError(
            f"task {task}: {budget} cases requested, but only {total} can be trained on; use a "
            f"smaller budget, or {ALL}"
        )
    chosen = _prefix(order, budget if isinstance(budget, int) else total)
    if lacking := _labels_in_groups(order, labels) - _labels_in_groups([chosen], labels):
        needed = _smallest(order, labels)
        raise SplitError(f"task {task}: {budget} {_cannot_hold(lacking, needed)}")
    return tuple(sorted(chosen))


def _cannot_hold(lacking: set[Hashable], needed: int) -> str:
    return (
        f"case(s) cannot cover every label (missing: {sorted(map(str, lacking))}); the smallest "
        f"sufficient budget is {needed}"
    )


def _prefix(order: Sequence[Sequence[str]], most: int) -> list[str]:
    """The cases of the first subjects, as many as `most` cases hold whole."""
    chosen: list[str] = []
    for cases in order:
        if len(chosen) + len(cases) > most:
            break
        chosen += cases
    return chosen


def _smallest(order: Sequence[Sequence[str]], labels: Labels) -> int:
    """How many cases the shortest prefix has that holds every label."""
    missing, count = _labels_in_groups(order, labels), 0
    for cases in order:
        if not missing:
            break
        missing -= _labels_in_groups([cases], labels)
        count += len(cases)
    return count


def _labels_in_groups(groups: Sequence[Sequence[str]], labels: Labels) -> set[Hashable]:
    return {label for cases in groups for case in cases for label in labels[case]}


def first_folds(cases: Sequence[str], subject: str | None) -> list[dict]:
    """The five folds that nnU-Net would make; of subjects, where they are known, with the same
    seed.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    subjects = sorted({subject_of(case, subject) for case in cases})
    if len(subjects) < FOLDS:
        raise SplitError(
            f"{len(subjects)} cases or subjects cannot be divided into nnU-Net's {FOLDS} folds"
        )
    folds = generate_crossval_split(subjects, seed=FOLD_SEED, n_splits=FOLDS)
    return [
        {part: _cases_of(fold[part], cases, subject) for part in ("train", "val")} for fold in folds
    ]


def _cases_of(subjects: Sequence[str], cases: Sequence[str], subject: str | None) -> list[str]:
    wanted = set(subjects)
    return [case for case in cases if subject_of(case, subject) in wanted]


def labels_of(preprocessed: Path) -> dict[str, frozenset]:
    """Which labels occur in each case, from what nnU-Net's preprocessing noted beside it.

    preprocessed: the configuration's folder. Raises FileNotFoundError where nothing is
    preprocessed.
    """
    paths = sorted(preprocessed.glob("*.pkl"))
    if not paths:
        raise FileNotFoundError(
            f"no preprocessed case in {preprocessed}; run nnU-Net's preprocessing first"
        )
    return {path.stem: frozenset(_occurring(pickle.loads(path.read_bytes()))) for path in paths}


def _occurring(properties: Mapping) -> Iterator[Hashable]:
    for label, voxels in properties["class_locations"].items():
        if len(voxels):
            yield label if isinstance(label, (int, tuple)) else str(label)
