"""What the architecture page says of the code is so: each file of "Where is ...?" has its names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "documentation" / "architecture.md").read_text(encoding="utf-8")
TABLES = PAGE.split("## Where is ...?")[1].split("\n## ")[0]
ROW = re.compile(r"^\| .* \| `(?P<file>[\w/.]+)` \|(?P<names>.*)\|$", re.MULTILINE)
ROWS = [(row["file"], re.findall(r"`([\w.]+)`", row["names"])) for row in ROW.finditer(TABLES)]


def defined(path: Path) -> set[str]:
    """Functions, classes, constants, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            found.add(ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target))
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize(("file", "names"), ROWS)
def test_each_thing_is_where_the_page_says(file, names):
    path = REPOSITORY / file
    assert path.is_file()
    if path.suffix == ".py":
        assert names
        assert set(names) <= defined(path)


def test_every_row_is_read():
    assert len(ROWS) == TABLES.count("\n|") - 2 * TABLES.count("|---|---|---|") > 35
