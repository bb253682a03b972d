"""What the bench of a GPU has found: gpu.json, and gpu.md with a table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.bench import markdown

COLUMNS = {  # of the table: field, heading, format
    "part": ("", "{}"),
    "scans": ("scans", "{}"),
    "ms": ("ms per step", "{:.1f}"),
    "scans_per_second": ("scans/s", "{:.1f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "waits": ("waits", "{}"),
    "idle": ("GPU idle", "{:.0%}"),
    "tflops": ("TFLOP/s", "{:.1f}"),
    "of_peak": ("of peak", "{:.1%}"),
    "first_s": ("first step s", "{:.1f}"),
}


@dataclass(frozen=True)
class GPUReport:
    """machine: what it is; parts: what each has found, by name."""

    folder: Path
    machine: dict
    parts: dict[str, dict] = field(default_factory=dict)

    def add(self, name: str, found: dict) -> None:
        """Print how a part has ended, and write both files."""
        self.parts[name] = found
        outcome = found.get("failed") or found.get("left_out") or f"{found['took_s']:.0f} s"
        print(f"{name}: {outcome}", flush=True)
        result = {"machine": self.machine, "parts": self.parts}
        (self.folder / "gpu.json").write_text(json.dumps(result, indent=1))
        (self.folder / "gpu.md").write_text(self.table())

    def table(self) -> str:
        """Markdown: one line of what it is, a table of what was timed, one line per other part."""
        lines = [_machine_line(self.machine), "", self._timed(), "", *self._others()]
        return "\n".join(lines) + "\n"

    def _timed(self) -> str:
        headings = [heading for heading, _ in COLUMNS.values()]
        timed = {name: found for name, found in self.parts.items() if "ms" in found}
        rows = (_timing_cells({"part": name, **found}) for name, found in timed.items())
        return markdown.pipe_table(headings, rows)

    def _others(self) -> list[str]:
        return [
            _untimed_line(name, found) for name, found in self.parts.items() if "ms" not in found
        ]


def _machine_line(machine: dict) -> str:
    crop = "x".join(map(str, machine["crop"]))
    words = [machine["device"], f"torch {machine['torch']}", f"preset {machine['preset']}", crop]
    words += machine["settings"]
    return ", ".join([*words, "as CUDA graphs"] if machine["graph"] else words)


def _timing_cells(row: dict) -> list[str]:
    """One per column; empty where the value is not known."""
    return [
        "" if row.get(field) is None else form.format(row[field])
        for field, (_, form) in COLUMNS.items()
    ]


def _untimed_line(name: str, found: dict) -> str:
    """Name and figures of a part that has no times."""
    figures = (_figure(*item) for item in found.items() if item[0] not in ("trace", "took_s"))
    return f"{name}: {', '.join(figures)}"


def _figure(key: str, value: object) -> str:
    return f"{key} {value:.1e}" if isinstance(value, float) else f"{key} {value}"
