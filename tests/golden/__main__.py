"""Write the golden traces again: `python tests/golden [METHOD ...]` from the repository's root.

Do so only for a change that is meant to change what a run computes, and say it in the changelog.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1])]

from nnssl.methods import METHODS  # noqa: E402

if __name__ == "__main__":
    from test_methods import trace

    for name in sys.argv[1:] or METHODS:
        rows = [{term: float(f"{value:.7g}") for term, value in row.items()} for row in trace(name)]
        lines = ",\n".join(json.dumps(row) for row in rows)
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        print(f"{name}: {rows[0]['total']} -> {rows[-1]['total']}")
