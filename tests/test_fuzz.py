"""Damaged headers of all formats and checkpoints, a few hundred with a fixed seed;
tests/fuzz_headers.py makes any number.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("fuzz_headers.py")


def test_damaged_headers_are_read_or_refused_and_nothing_else():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--cases", "400"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == 400
    assert counts["scan refused"] > 80
    assert counts["scan kept"] > 20  # damage that does no harm
    assert counts["checkpoint refused"] > 40
    assert counts["checkpoint kept"] >= 1
