"""Few-shot splits: nested, seeded, every label, subjects together, existing folds untouched."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from test_description import SMALL, written

from nnssl.study.design import splits
from nnssl.study.design.description import DescriptionError, load_study
from nnssl.study.design.splits import SplitError

CASES = [f"patient{p:02d}_{frame}" for p in range(15) for frame in ("ed", "es")]
SUBJECT = r"(patient\d+)_"
RARE = ("patient01", "patient04", "patient07", "patient11")
LABELS = {case: frozenset({1, 2, 3} if case.startswith(RARE) else {1, 2}) for case in CASES}


def study(tmp_path, subject=SUBJECT, **changes):
    task = SMALL["tasks"][0] | ({"subject": subject} if subject else {})
    return load_study(
        written(
            tmp_path,
            **({"budgets": [2, 6, 12, "all"], "seeds": [0, 1, 2], "tasks": [task]} | changes),
        )
    )


def append(tmp_path, design):
    return splits.append(tmp_path / "splits_final.json", design, design.tasks[0], LABELS)


def test_nested_stratified_and_the_same_validation(tmp_path):
    small_study = study(tmp_path)
    found = append(tmp_path, small_study)
    for seed in small_study.seeds:
        chain = [set(found[budget, seed].train) for budget in small_study.budgets]
        assert all(smaller < larger for smaller, larger in pairwise(chain))
        assert [len(cases) for cases in chain[:3]] == [2, 6, 12]
        assert all(
            {1, 2, 3} <= frozenset().union(*(LABELS[case] for case in cases)) for cases in chain
        )
    assert len({split.val for split in found.values()}) == 1
    assert len({found[6, seed].train for seed in small_study.seeds}) == 3  # seeds draw other cases


def test_the_rest_is_what_the_largest_budget_leaves(tmp_path):
    task = SMALL["tasks"][0] | {"subject": SUBJECT, "validate": "rest"}
    small_study = study(tmp_path, tasks=[task], budgets=[2, 6, 12])
    found = append(tmp_path, small_study)
    for seed in small_study.seeds:
        largest = set(found[12, seed].train)
        assert set(found[2, seed].train) < set(found[6, seed].train) < largest
        assert {found[budget, seed].val for budget in small_study.budgets} == {found[12, seed].val}
        assert set(found[12, seed].val) == set(CASES) - largest
    assert len({found[12, seed].val for seed in small_study.seeds}) == 3
    with pytest.raises(SplitError, match="leaves no case for validation"):
        append(tmp_path, study(tmp_path, tasks=[task], budgets=[30]))


@pytest.mark.parametrize("changes", [{"budgets": [2, "all"]}, {"seeds": None, "folds": [0, 1]}])
def test_all_cases_and_folds_leave_no_rest(tmp_path, changes):
    changes = {key: value for key, value in ({"seeds": [0]} | changes).items() if value}
    task = SMALL["tasks"][0] | {"validate": "rest"}
    with pytest.raises(DescriptionError, match="give seeds and numbers of cases"):
        load_study(written(tmp_path, **{"budgets": [2], "tasks": [task]} | changes))


@pytest.mark.parametrize(
    "content",
    ['{"train": []}', "[3]", '[{"train": ["a"]}]', '[{"train": ["a"], "val": [7]}]', "[", "null"],
)
def test_a_file_that_holds_no_splits_is_named(tmp_path, content):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(ValueError, match=r"splits_final\.json (must be a list|is not valid JSON)"):
        append(tmp_path, study(tmp_path))


def test_a_case_of_a_fold_that_is_not_stored_is_named(tmp_path):
    fold = {"train": CASES[:20], "val": [*CASES[20:], "patient99_ed"]}
    (tmp_path / "splits_final.json").write_text(json.dumps([fold]))
    with pytest.raises(SplitError, match=r"1 case\(s\) that are not preprocessed.*patient99_ed"):
        append(tmp_path, study(tmp_path))


def test_subjects_stay_together(tmp_path):
    for split in append(tmp_path, study(tmp_path, budgets=[3, 7])).values():
        names = {case.split("_")[0] for case in split.train}
        assert len(split.train) == 2 * len(names)  # budgets of odd numbers are not quite used up
        assert not names & {case.split("_")[0] for case in split.val}


def test_existing_folds_are_never_changed_and_a_second_time_adds_nothing(tmp_path):
    path = tmp_path / "splits_final.json"
    theirs = [{"train": CASES[:20], "val": CASES[20:]}, {"val": CASES[:9], "train": CASES[9:]}]
    path.write_text(json.dumps(theirs))
    small_study = study(tmp_path)
    found = append(tmp_path, small_study)
    once = path.read_bytes()
    assert json.loads(once)[:2] == theirs
    assert [split.fold for split in found.values()] == list(range(2, 14))
    assert append(tmp_path, small_study) == found
    assert path.read_bytes() == once
    more = append(tmp_path, study(tmp_path, budgets=[2, 4, 6, 12, "all"]))
    assert {key: more[key] for key in found} == found
    assert json.loads(path.read_text())[:14] == json.loads(once)


def test_training_cases_of_validated_subjects_are_left_out(tmp_path):
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": CASES[1:], "val": CASES[:1]}])
    )
    split = append(tmp_path, study(tmp_path))["all", 0]
    assert split.train == tuple(CASES[2:])


def test_without_a_file_the_first_five_are_nnunets_own(tmp_path):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    append(tmp_path, study(tmp_path, subject=None))
    assert json.loads((tmp_path / "splits_final.json").read_text())[:5] == generate_crossval_split(
        CASES
    )


def test_folds_in_the_place_of_seeds_validate_on_other_cases(tmp_path):
    found = append(tmp_path, study(tmp_path, seeds=None, folds=[0, 3]))
    folds = json.loads((tmp_path / "splits_final.json").read_text())
    assert found["all", 3].val == tuple(folds[3]["val"])
    assert found["all", 0].val == tuple(folds[0]["val"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [1]}, "1 case.*smallest sufficient budget is 2"),
        ({"budgets": [99]}, "99 cases requested, but only 24"),
        ({"subject": "nobody"}, "does not match the case name 'patient00_ed'"),
        ({"tasks": [SMALL["tasks"][0] | {"fold": 5}]}, "no fold 5.*0 to 4"),
    ],
)
def test_impossible_splits_say_what_is_possible(tmp_path, changes, message):
    with pytest.raises(SplitError, match=message):
        append(tmp_path, study(tmp_path, **changes))
    assert not (tmp_path / "splits_final.json").exists()


def test_few_cases_that_only_together_hold_every_label(tmp_path):
    labels = {f"case{i}": frozenset({i % 4}) for i in range(20)}
    order = splits.nested_order(sorted(labels), labels, None, "seed")
    assert len(splits.take(order, 4, labels, "task")) == 4
    with pytest.raises(SplitError, match=r"3 case.*is 4"):
        splits.take(order, 3, labels, "task")


def test_labels_come_from_nnunets_notes(tmp_path):
    for name, voxels in {"a": np.zeros((3, 4)), "b": np.zeros((0, 4))}.items():
        (tmp_path / f"{name}.pkl").write_bytes(
            pickle.dumps({"class_locations": {1: voxels, (1, 2): [0]}})
        )
    assert splits.labels_of(tmp_path) == {"a": {1, (1, 2)}, "b": {(1, 2)}}
    with pytest.raises(FileNotFoundError, match="preprocessing first"):
        splits.labels_of(tmp_path / "none")
