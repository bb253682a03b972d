"""A start for scans that nothing happened to compares nothing, and says what it said before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_scans import ct_array, straight, write_series, write_volume

from nnssl.data import prepare as prepare_module
from nnssl.data import survey as survey_module
from nnssl.data import unchanged as unchanged_module
from nnssl.data.plan import Plan
from nnssl.data.scans import CLOSED, LOST, Found
from nnssl.data.survey_lines import line_file
from nnssl.data.unchanged import UNCHANGED, digest_of
from nnssl.files import NoRoomError, read_json, write_json


def no_memory(found: Found, *_) -> None:
    raise MemoryError


@pytest.fixture
def surveys(monkeypatch) -> list[int]:
    """The number of scans of each survey."""
    sizes: list[int] = []
    survey = prepare_module.survey

    def counted(scans: list[Found], *args, **options) -> list:
        sizes.append(len(scans))
        return survey(scans, *args, **options)

    monkeypatch.setattr(prepare_module, "survey", counted)
    return sizes


@pytest.fixture
def start(tmp_path, surveys) -> Callable:
    """A start with two scans in `raw`, which returns its plan; the first is made."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed, name in enumerate("ab"):
        write_volume(raw / f"{name}.nii.gz", ct_array(seed=seed))

    def start(
        *, source: str = "raw", folder: str = "out", said: list[str] | None = None, **options
    ) -> Plan:
        say = [].append if said is None else said.append
        folder, sources = tmp_path / folder, [tmp_path / source]
        options = {"num_processes": 0, "spacing": (2, 2, 2), "crop": (16, 16, 16), **options}
        request = prepare_module.PrepareRequest("made", folder, sources, print_fn=say, **options)
        return prepare_module.prepare(request)

    start()
    assert surveys == [2]
    surveys.clear()
    return start


def test_the_second_start_surveys_nothing_and_has_the_same_plan(tmp_path, start, surveys):
    assert start() == start()
    assert surveys == []
    assert start(source="raw/../raw").cases  # another name of the folder is looked at
    assert surveys == [2]


def test_what_was_said_is_said_again(tmp_path, start, surveys):
    write_volume(tmp_path / "raw" / "c.nii.gz", ct_array(seed=3))
    said: list[str] = []
    start(said=said)
    assert surveys == [3]
    assert len(said) == 1
    assert "1 new" in said[0]
    again: list[str] = []
    start(said=again)
    assert (again, surveys) == (said, [3])
    assert len(start(update=True).cases) == 3
    quiet: list[str] = []
    start(said=quiet)
    start(said=quiet)
    assert quiet == []
    assert surveys == [3, 3, 3]  # --update, and one start after it


def touched(tmp_path: Path) -> None:
    os.utime(tmp_path / "raw" / "a.nii.gz", ns=(1, 1))


def rewritten(tmp_path: Path) -> None:
    write_volume(tmp_path / "raw" / "a.nii.gz", ct_array((16, 24, 30)))


def removed(tmp_path: Path) -> None:
    (tmp_path / "raw" / "a.nii.gz").unlink()


def labelled(tmp_path: Path) -> None:
    write_volume(tmp_path / "raw" / "a_seg.nii.gz", ct_array())


def without_answer(tmp_path: Path) -> None:
    next((tmp_path / "out" / "survey").iterdir()).unlink()


def without_report(tmp_path: Path) -> None:
    (tmp_path / "out" / "report.csv").unlink()


def with_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "raw" / "series", ct_array(), straight(16))


def of_another_version(tmp_path: Path) -> None:
    file = tmp_path / "out" / UNCHANGED
    kept = read_json(file)
    write_json(file, {**kept, "made": [0, *kept["made"][1:]]})


def damaged(tmp_path: Path) -> None:
    (tmp_path / "out" / UNCHANGED).write_text("[1]")


def emptied(tmp_path: Path) -> None:
    (tmp_path / "out" / UNCHANGED).write_text("{")


@pytest.mark.parametrize(
    "change",
    [
        touched, rewritten, removed, labelled, without_answer, without_report, with_dicom,
        of_another_version, damaged, emptied,
    ],
)  # fmt: skip
def test_after_any_change_all_is_compared(tmp_path, start, surveys, change):
    change(tmp_path)
    plan = start()
    assert len(surveys) == 1
    assert start() == plan
    assert len(surveys) == (2 if change in (with_dicom, removed) else 1)


def test_an_edited_plan_is_looked_at(tmp_path, start, surveys):
    file = tmp_path / "out" / "plan.json"
    write_json(file, read_json(file))
    start()
    assert surveys == [2]


def test_what_failed_without_an_answer_is_tried_again(tmp_path, start, surveys, monkeypatch):
    """No room today may be room tomorrow."""
    write_volume(tmp_path / "raw" / "c.nii.gz", ct_array(seed=3))

    inspect = survey_module.inspect_scan
    monkeypatch.setattr(survey_module, "inspect_scan", no_memory)
    start()
    start()
    assert surveys == [3, 3]
    assert not line_file(Found(str(tmp_path / "raw" / "c.nii.gz")), tmp_path / "out").exists()
    monkeypatch.setattr(survey_module, "inspect_scan", inspect)
    assert len(start(update=True).cases) == 3


def test_a_changed_scan_that_cannot_be_read_is_tried_again(tmp_path, start, surveys, monkeypatch):
    """Its earlier answer is there, and is not this one."""
    inspect = survey_module.inspect_scan

    monkeypatch.setattr(survey_module, "inspect_scan", no_memory)
    rewritten(tmp_path)
    said: list[str] = []
    start(said=said)
    assert "1 gone" in said[0]
    monkeypatch.setattr(survey_module, "inspect_scan", inspect)
    said.clear()
    start(said=said)
    assert surveys == [2, 2]
    assert "1 changed" in said[0]


def test_cases_that_are_gone_are_looked_for_at_each_start(tmp_path, start, surveys):
    """They may turn up elsewhere, as scans that have moved."""
    removed(tmp_path)
    start()
    start()
    assert surveys == [1, 1]


def test_a_plan_that_is_changed_meanwhile_is_compared(tmp_path, start, surveys, monkeypatch):
    """By another start with --update at the same time."""
    write_volume(tmp_path / "raw" / "c.nii.gz", ct_array(seed=3))
    compare = prepare_module._kept_plan

    def with_another(*args):
        monkeypatch.setattr(prepare_module, "_kept_plan", compare)
        start(update=True)
        return compare(*args)

    monkeypatch.setattr(prepare_module, "_kept_plan", with_another)
    said: list[str] = []
    start(said=said)
    assert "1 new" in said[0]
    said.clear()
    assert len(start(said=said).cases) == 3
    assert said == []


def test_a_start_does_without_the_file_where_it_cannot_be_written(
    tmp_path, start, surveys, monkeypatch
):
    def full(*_) -> None:
        raise NoRoomError

    touched(tmp_path)
    monkeypatch.setattr(unchanged_module, "write_json", full)
    assert start() == start()
    assert surveys == [2, 2]


def test_what_was_said_of_another_folder_is_not_said(tmp_path, start, surveys):
    write_volume(tmp_path / "raw" / "c.nii.gz", ct_array(seed=3))
    start()
    (tmp_path / "out").rename(tmp_path / "moved")
    said: list[str] = []
    start(said=said, folder="moved")
    assert str(tmp_path / "moved" / "plan.json") in said[0]


def test_links_that_lead_nowhere_are_counted(tmp_path):
    for name in "ab":
        (tmp_path / name).symlink_to(tmp_path / f"gone-{name}")
    both = digest_of([Found(str(tmp_path), LOST)])
    (tmp_path / "a").unlink()
    assert digest_of([Found(str(tmp_path), LOST)]) != both


def test_what_cannot_be_read_has_no_digest(tmp_path):
    assert digest_of([Found(str(tmp_path / "gone.nii.gz"))]) is None
    assert digest_of([Found(str(tmp_path), CLOSED)]) != digest_of([])
