"""What the documentation names exists, and its example runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from nnssl import cli
from nnssl.__main__ import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "documentation").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_cells_of_the_comparison_are_short_and_each_project_has_its_version():
    text = (REPOSITORY / "documentation" / "comparison.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert max(len(re.sub(r"\]\([^)]*\)", "]", cell)) for row in rows for cell in row) <= 80
    assert {len(row) for row in rows} == {2, 6}  # the versions, and five columns beside the words
    assert len(re.findall(r"^\| .+ \| .*`[0-9a-f]{7}`", text, flags=re.M)) == 4


def options_of(command: str, monkeypatch, capsys) -> set[str]:
    monkeypatch.setattr(sys, "argv", [f"nnssl_{command}", "--help"])
    with pytest.raises(SystemExit):
        getattr(cli, command)()
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_a_page_names_exists(command, monkeypatch, capsys):
    known = options_of(command, monkeypatch, capsys)
    for page in PAGES:
        for line in re.findall(rf"nnssl_{command}( [^`#&|\n]*)", page.read_text(encoding="utf-8")):
            named = set(re.findall(r"(?<= )--?[a-zA-Z][\w-]*", line))
            assert named <= known, f"{page.name}: nnssl_{command}{line}"


def test_the_example_method_keeps_the_contract():
    from nnssl.encoder.presets import preset
    from nnssl.encoder.swin import Swin

    text = (REPOSITORY / "documentation" / "add_a_method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    page = {"__name__": "example"}
    exec(compile(code, "add_a_method.md", "exec", dont_inherit=True), page)
    method = page["Inpaint"](Swin(preset("tiny"), maskable=True), page["InpaintConfig"]())
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    step = method(method.views(torch.randn(2, 1, 32, 32, 32), generators))
    step.losses["total"].backward()
    silent = [
        name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()
    ]
    assert silent == []
