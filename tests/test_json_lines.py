"""Rows of JSON: what a kill may leave is read, what it cannot have left is an error."""

from __future__ import annotations

import json

import pytest

from nnssl import files
from nnssl.study.report.results import Results, ResultsError

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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"kind": "run", "run": "a"},
            "row 1 of the results, a run, lacks task, arm, budget, seed, state",
        ),
        (
            {"kind": "case", "run": ["a"], "case": "b", "label": "c"},
            "has a list or mapping for run",
        ),
    ],
)
def test_a_row_that_cannot_be_a_studys_is_named(row, message):
    with pytest.raises(ResultsError, match=message):
        Results([row])
