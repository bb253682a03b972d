"""The survey's lines in one file: what it says is taken where nothing has changed, and only
there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.data import survey as survey_module
from nnssl.data import survey_lines
from nnssl.data.scans import Found
from nnssl.data.survey import survey
from nnssl.data.survey_index import INDEX, Index
from nnssl.data.survey_lines import line_file
from nnssl.data.survey_report import ScanReport
from nnssl.files import read_json, write_json
from nnssl.json_text import LONG

SHAPE = (4, 5, 6)


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The scans that were looked at, and those whose answers were opened, in `opened`."""
    inspected: list[str] = []

    def inspect(found: Found, *_) -> ScanReport:
        inspected.append(Path(found.path).name)
        return ScanReport(
            found.path,
            found.series,
            True,
            "",
            SHAPE,
            (1.5, 0.7, 0.7),
            (-1000.0, -900.0, 0.0, 90.0, 900.0),
            "histogram",
        )

    monkeypatch.setattr(survey_module, "inspect_scan", inspect)
    return inspected


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    names: list[str] = []
    read = survey_lines.read_json
    monkeypatch.setattr(
        survey_lines, "read_json", lambda path: names.append(Path(path).name) or read(path)
    )
    return names


@pytest.fixture
def scans(tmp_path, looked) -> list[Found]:
    """Three, surveyed once."""
    found = [Found(str(tmp_path / f"{name}.nii.gz")) for name in "abc"]
    for scan in found:
        Path(scan.path).write_bytes(b"123")
    survey(found, tmp_path / "out", 0)
    assert looked == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    looked.clear()
    return found


def test_no_answer_is_opened_and_no_report_written_again(tmp_path, scans, looked, opened) -> None:
    out = tmp_path / "out"
    first = survey(scans, out, 0)
    assert len(opened) == 3  # a plan may be made of them
    opened.clear()
    when = {name: (out / name).stat().st_mtime_ns for name in ("report.json", "report.csv", INDEX)}
    assert survey(scans, out, 0, histograms=False) == first
    assert (looked, opened) == ([], [])
    assert {name: (out / name).stat().st_mtime_ns for name in when} == when


@pytest.mark.parametrize("damage", ["{", "", "[]\n[1]\n", '[]\n"text"\n'], ids=repr)
def test_a_damaged_file_is_made_again(tmp_path, scans, looked, damage: str) -> None:
    out = tmp_path / "out"
    whole = (out / INDEX).read_bytes()
    (out / INDEX).write_text(damage)
    assert len(survey(scans, out, 0, histograms=False)) == 3
    assert looked == []
    assert (out / INDEX).read_bytes() == whole


def test_what_has_changed_is_looked_at_again(tmp_path, scans, looked) -> None:
    out = tmp_path / "out"
    Path(scans[0].path).write_bytes(b"1234")  # another size
    line_file(scans[1], out).unlink()
    line_file(scans[2], out).write_text("[]")  # damaged
    assert len(survey(scans, out, 0, histograms=False)) == 3
    assert looked == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    looked.clear()
    survey(scans, out, 0, histograms=False)
    assert looked == []


@pytest.mark.parametrize("histograms", [True, False])
def test_what_an_earlier_version_refused_is_looked_at_again(
    tmp_path, scans, looked, monkeypatch, histograms: bool
) -> None:
    reason = "cannot be read: line 18 of its header is not KEY = VALUE, or repeats a key"
    refused = ScanReport(scans[0].path, scans[0].series, False, reason)
    with monkeypatch.context() as earlier:
        earlier.setattr(survey_module, "inspect_scan", lambda *_: refused)
        Path(scans[0].path).write_bytes(b"1234")
        survey(scans, tmp_path / "out", 0)
    assert survey(scans, tmp_path / "out", 0, histograms=histograms)[0].kept
    assert looked == ["a.nii.gz"]


def test_the_report_follows_what_is_there(tmp_path, scans) -> None:
    """Scans that come and go, files that could not be read, and a report that was removed."""
    out = tmp_path / "out"

    def reported(found: list[Found]) -> list[str]:
        survey(found, out, 0, histograms=False)
        return [Path(line["path"]).name for line in read_json(out / "report.json")["scans"]]

    gone = Found(str(tmp_path / "gone.nii.gz"))
    assert reported(scans[:2]) == ["a.nii.gz", "b.nii.gz"]
    assert reported(scans) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert reported([*scans, gone])[-1] == "gone.nii.gz"
    assert reported(scans) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    (out / "report.csv").unlink()
    reported(scans)
    assert (out / "report.csv").exists()


def test_names_that_are_not_utf8_are_kept(tmp_path) -> None:
    scan = Found("/raw/\udce4.nii.gz", "")
    line = ScanReport(scan.path, "", True, "", SHAPE, (1.0, 1.0, 1.0))
    write_json(line_file(scan, tmp_path), {})
    index = Index(tmp_path, {})
    index.keep({scan: line}, {scan: [2, 3, 4]}, {})
    assert Index(tmp_path, {scan: [2, 3, 4]}).known == {scan: line}
    assert Index(tmp_path, {scan: [2, 3, 5]}).known == {}


# -- JSON of long lists ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 1])
def test_json_of_any_length_reads_back(tmp_path, more: int) -> None:
    items = [{"n": n, "text": "ü\n", "list": [1, [2.5, None]]} for n in range(LONG + more)]
    value = {
        "a": {"b": [1]},
        "long": items,
        "named": {str(n): [n] for n in range(LONG + more)},
        "end": [],
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert (text == json.dumps(value, indent=2) + "\n") is not bool(more)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"long": [*items, float("nan")] * 2})
    assert (tmp_path / "x.json").read_text() == text
