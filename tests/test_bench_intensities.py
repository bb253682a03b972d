"""The table of HU policies: what it prints of scans, and that a tissue beyond the clip has no
spread.
"""

from __future__ import annotations

import numpy as np
from synthetic_scans import write_volume

from nnssl.bench import intensities


def test_a_row_a_policy(tmp_path, capsys):
    hu = np.linspace(-1000, 1500, 16 * 24 * 24).astype(np.int16).reshape(16, 24, 24)
    path = write_volume(tmp_path / "a.nii.gz", hu, (2.0, 2.0, 2.0))
    intensities.main([str(path)])
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")
    ]
    assert [row[0].split()[1] for row in rows] == ["policy", "linear", "linear", "piecewise"]
    assert len({len(row) for row in rows}) == 1
    narrow, piecewise = rows[2], rows[3]
    assert "[-175, 250]" in narrow[0]
    assert float(narrow[1]) == 0.0 < float(piecewise[1])  # lung
