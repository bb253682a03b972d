"""What the documentation names exists, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "documentation").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_example_method_keeps_the_contract():
    from nnssl.encoder.presets import preset
    from nnssl.encoder.swin import Swin

    text = (REPOSITORY / "documentation" / "add_a_method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    page = {"__name__": "example"}
    exec(compile(code, "add_a_method.md", "exec", dont_inherit=True), page)
    method = page["Inpaint"](Swin(preset("tiny"), maskable=True), page["InpaintConfig"]())
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    step = method(method.views(torch.randn(2, 1, 32, 32, 32), generators))
    step.losses["total"].backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []
