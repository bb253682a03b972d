"""Rows of JSON: what a kill may leave is read, what it cannot have left is an error."""

from __future__ import annotations

import json

import pytest
from synthetic_results import case_row, run_row

from nnssl import files
from nnssl.study.report.results import Group, Results, ResultsError

ROWS = [{"kind": "epoch", "run": "a", "epoch": n} for n in range(6)]
LINES = [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize(
    ("last", "count"),
    [("", 6), ('{"kind": "ep', 6), ("\0" * 512, 6), ("\n\n", 6), (LINES[0][:9] + "\n", 6)],
)
def test_a_last_line_cut_short_is_left_out(tmp_path, last, count):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(LINES) + "\n" + last)
    assert files.read_json_lines(path) == ROWS[:count]


@pytest.mark.parametrize(
    "damaged", [LINES[2][:9], "\0" * 512, LINES[2] + LINES[3], "3", "[" * 3000, "\udcff{"]
)
def test_a_damaged_line_before_the_last_is_named(tmp_path, damaged):
    path = tmp_path / "results.jsonl"
    text = "\n".join([*LINES[:2], damaged, *LINES[3:]]) + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"results.jsonl, line 3 is damaged.*delete that line"):
        files.read_json_lines(path)
    with pytest.raises(ValueError, match="line 3 is damaged"):
        Results.read(path)


def test_of_a_file_written_at_once_the_last_line_counts_as_well(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES)[:-3])
    assert files.read_json_lines(path) == ROWS[:-1]
    with pytest.raises(ValueError, match="line 6 is damaged"):
        files.read_json_lines(path, whole=True)


@pytest.mark.parametrize("content", [b"{", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_blank_lines_are_no_damage(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n\n".join(LINES))
    assert files.read_json_lines(path) == ROWS


RUN = run_row("r", "t", "smit", 2, 0)
CASE = case_row("r", "b", "liver", 0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"kind": "run", "run": "a"},
            "row 1 of the results, a run, lacks task, arm, budget, seed, state",
        ),
        (
            {"kind": "case", "run": ["a"], "case": "b", "label": "c"},
            r"row 1 of the results, a case, has run: \['a'\]; allowed: a string",
        ),
        (RUN | {"cases": "2"}, "has cases: '2'; allowed: an integer or null"),
        (RUN | {"task": None}, "a run, has task: None; allowed: a string"),
        (RUN | {"seed": True}, "has seed: True; allowed: an integer"),
        (RUN | {"budget": 2.5}, "has budget: 2.5; allowed: an integer or a string"),
        (CASE | {"dice": "0,8"}, "a case, has dice: '0,8'; allowed: a number or null"),
        (CASE | {"dice": 8.0}, "has dice: 8.0; allowed: 0 to 1, or null"),
        (CASE | {"surface_dice": -0.5}, "has surface_dice: -0.5; allowed: 0 to 1, or null"),
    ],
)
def test_a_row_that_cannot_be_a_studys_is_named(tmp_path, row, message):
    with pytest.raises(ResultsError, match=message):
        Results([row])
    files.write_json_lines(tmp_path / "results.jsonl", [RUN, row])
    with pytest.raises(ResultsError, match=r"results\.jsonl, row 2 of the results, a "):
        Results.read(tmp_path / "results.jsonl")


def test_whole_numbers_and_null_are_scores():
    scores = Results([RUN, CASE | {"dice": 1, "hd95": 0}, CASE | {"case": "c", "dice": None}])
    assert scores.scores(Group("t", "smit", 2), "dice").mean == 1.0
