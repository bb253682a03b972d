"""The page of promises names tests that are there, and each case that users met has its number in
one.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "documentation" / "promises.md"
WIDEST = 80  # characters of a cell


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if "`test_" in row[-1]]


def docstrings() -> dict[str, str]:
    """Name to docstring, of all tests."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = ast.get_docstring(node) or ""
    return found


TESTS = docstrings()


def test_every_promise_names_a_test():
    named = [name for row in rows() for name in re.findall(r"`(test_\w+)`", row[-1])]
    assert len(named) >= 60
    assert [name for name in named if name not in TESTS] == []


def test_no_cell_is_wide():
    assert [cell for row in rows() for cell in row if len(cell) > WIDEST] == []


CASES = [row for row in rows() if re.fullmatch(r"[TU]\d+", row[0])]


@pytest.mark.parametrize("row", CASES, ids=lambda row: row[0])
def test_a_case_has_its_number_in_its_test(row):
    (name,) = re.findall(r"`(test_\w+)`", row[-1])
    assert re.search(rf"\b{row[0]}\b", TESTS[name].partition(":")[0]), (row[0], name)
