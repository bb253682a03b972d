"""Few-shot splits: more entries in nnU-Net's splits_final.json, behind the existing ones, which
never change.

An entry is nnU-Net's own {"train", "val"} with a third key, `nnssl_study`, that says whose it is;
nnU-Net reads the first two. For one seed the subsets are nested: a smaller budget's cases are among
a larger one's. Cases of one subject are taken all or none, so that a budget may be used up not
quite, and none is trained on whose subject is validated on.
"""

from __future__ import annotations

import fcntl
import pickle
import random
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.study.design.description import ALL, REST, Budget, Study, Task

FILE, OWNER = "splits_final.json", "nnssl_study"
FOLDS, FOLD_SEED = 5, 12345  # nnU-Net's own

Labels = Mapping[str, frozenset]  # case -> the labels that occur in it


class SplitError(ValueError):
    """No such subset exists; the message says which would."""


@dataclass(frozen=True)
class Split:
    """The cases of one run, and which entry of splits_final.json (nnU-Net's "fold") holds them."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]


def append(path: Path, study: Study, task: Task, labels: Labels) -> dict[tuple[Budget, int], Split]:
    """Add what is missing to the file at `path`; the splits of all budgets and seeds. Made twice,
    it changes nothing.

    Where there is no file yet, nnU-Net's own five folds are written first (by subject where the
    task has subjects). Raises SplitError.
    """
    with _locked(path):
        known = (
            list(files.read_json(path))
            if path.is_file()
            else first_folds(sorted(labels), task.subject)
        )
        found = {}
        for key, (train, val) in wanted(known, study, task, labels).items():
            owner = {"study": study.name, "task": task.name, "budget": key[0], "seed": key[1]}
            entry = {"train": list(train), "val": list(val), OWNER: owner}
            if entry not in known:
                known.append(entry)
            found[key] = Split(known.index(entry), train, val)
        if not path.is_file() or known != files.read_json(path):
            files.write_json(path, known)
        return found


def wanted(
    folds: Sequence[Mapping], study: Study, task: Task, labels: Labels
) -> dict[tuple[Budget, int], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Training and validation cases by budget and seed, of the `folds` that are in the file. Raises
    SplitError.
    """
    found = {}
    for seed in study.seeds:
        if task.validate == REST:
            found |= _with_the_rest(study, task, labels, seed)
            continue
        fold = seed if study.by_fold else task.fold
        if fold >= len(folds) or OWNER in folds[fold]:
            own = sum(OWNER not in entry for entry in folds)
            raise SplitError(
                f"task {task.name}: no fold {fold} in {FILE}; there are 0 to {own - 1}"
            )
        val = tuple(folds[fold]["val"])
        pool = apart(folds[fold]["train"], val, task.subject)
        order = nested_order(pool, labels, task.subject, f"{task.name} {seed}")
        for budget in study.budgets:
            found[budget, seed] = (take(order, budget, labels, task.name), val)
    return found


def _with_the_rest(study: Study, task: Task, labels: Labels, seed: int) -> dict:
    """As `wanted`, for one seed: drawn of all cases, and validated on those that not even the
    largest budget trains on.
    """
    order = nested_order(sorted(labels), labels, task.subject, f"{task.name} {seed}")
    trained = {budget: take(order, budget, labels, task.name) for budget in study.budgets}
    most = max(study.budgets)
    if not (val := tuple(sorted(labels.keys() - set(trained[most])))):
        raise SplitError(f"task {task.name}: a budget of {most} cases leaves none to validate on")
    return {(budget, seed): (train, val) for budget, train in trained.items()}


def apart(train: Sequence[str], val: Sequence[str], subject: str | None) -> list[str]:
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
        raise SplitError(f"subject {subject!r} finds nothing in the case's name {case!r}")
    return match.group(1) if match.groups() else match.group()


def nested_order(
    pool: Sequence[str], labels: Labels, subject: str | None, seed: str
) -> list[tuple[str, ...]]:
    """The subjects of `pool`, each as its cases, so that any prefix is a subset: shuffled by
    `seed`, and before the others come as few as cover all labels (greedily: the first of those that
    add most)."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in sorted(pool):
        groups[subject_of(case, subject)].append(case)
    left = list(groups.values())
    random.Random(seed).shuffle(left)
    missing = _labels(left, labels)
    first = []
    while missing:
        # the first of several
        best = max(left, key=lambda cases: len(_labels([cases], labels) & missing))
        left.remove(best)
        first.append(best)
        missing -= _labels([best], labels)
    return [tuple(cases) for cases in first + left]


def take(
    order: Sequence[Sequence[str]], budget: Budget, labels: Labels, task: str
) -> tuple[str, ...]:
    """The longest prefix of at most `budget` cases. Raises SplitError where it lacks a label that
    `order` holds.
    """
    chosen: list[str] = []
    for cases in order:
        if isinstance(budget, int) and len(chosen) + len(cases) > budget:
            break
        chosen += cases
    total = sum(map(len, order))
    if isinstance(budget, int) and budget > total:
        raise SplitError(
            f"task {task}: {budget} cases are asked for, there are {total} to train on; {ALL} is a "
            "budget"
        )
    if lacking := _labels(order, labels) - _labels([chosen], labels):
        raise SplitError(
            f"task {task}: {budget} case(s) cannot hold every label (missing: "
            f"{sorted(map(str, lacking))}); the smallest budget that does is "
            f"{_smallest(order, labels)}"
        )
    return tuple(sorted(chosen))


def _smallest(order: Sequence[Sequence[str]], labels: Labels) -> int:
    wanted, held, count = _labels(order, labels), set(), 0
    for cases in order:
        if wanted <= held:
            break
        held |= _labels([cases], labels)
        count += len(cases)
    return count


def _labels(groups: Sequence[Sequence[str]], labels: Labels) -> set[Hashable]:
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
        {
            part: [case for case in cases if subject_of(case, subject) in set(fold[part])]
            for part in ("train", "val")
        }
        for fold in folds
    ]


def labels_of(preprocessed: Path) -> dict[str, frozenset]:
    """Which labels occur in each case, from what nnU-Net's preprocessing noted beside it.

    preprocessed: the configuration's folder. Raises FileNotFoundError where nothing is
    preprocessed.
    """
    notes = sorted(preprocessed.glob("*.pkl"))
    if not notes:
        raise FileNotFoundError(
            f"no preprocessed case in {preprocessed}; let nnU-Net preprocess first"
        )
    return {note.stem: frozenset(_occurring(pickle.loads(note.read_bytes()))) for note in notes}


def _occurring(note: Mapping) -> Iterator[Hashable]:
    for label, voxels in note["class_locations"].items():
        if len(voxels):
            yield label if isinstance(label, (int, tuple)) else str(label)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two studies may share a dataset: one writes after the other."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
