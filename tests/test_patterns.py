"""Which files of a folder are scans, where --pattern says so: collections that lie beside
labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_scans import ct_array, straight, write_series, write_volume

from nnssl.data import patterns
from nnssl.data.plan import Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.scans import find_scans
from nnssl.files import read_json

SHAPE = (14, 20, 24)


def totalsegmentator(folder: Path, numbers=range(2)) -> Path:
    for number in numbers:
        case = folder / f"s{number:04d}"
        array = ct_array(SHAPE, number)
        write_volume(case / "ct.nii.gz", array)
        for organ in ("liver", "spleen"):
            write_volume(case / "segmentations" / f"{organ}.nii.gz", (array > 0).astype(np.int16))
    return folder


def kits(folder: Path, numbers=range(2)) -> Path:
    for number in numbers:
        case = folder / f"case_{number:05d}"
        array = ct_array(SHAPE, number)
        write_volume(case / "imaging.nii.gz", array)
        # 16 bits and a name that is no label's: only its values would tell
        for name in ("aggregated_AND", "instances/kidney_1"):
            write_volume(case / f"{name}.nii.gz", (array > 0).astype(np.int16))
    return folder


@pytest.mark.parametrize(
    ("pattern", "path", "match"),
    [
        ("*/ct.nii.gz", "s0001/ct.nii.gz", True),
        ("*/ct.nii.gz", "ct.nii.gz", False),
        ("*/ct.nii.gz", "a/s0001/ct.nii.gz", False),
        ("**/ct.nii.gz", "a/s0001/ct.nii.gz", True),
        ("**/ct.nii.gz", "ct.nii.gz", True),
        ("*/CT/**", "a/CT/b/c.dcm", True),
        ("*/CT/**", "a/PET/b/c.dcm", False),
        ("case_0000[01]/i*.nii.gz", "case_00001/imaging.nii.gz", True),
        ("case_0000[01]/i*.nii.gz", "case_00002/imaging.nii.gz", False),
    ],
)
def test_a_star_stays_within_a_name_and_two_do_not(pattern, path, match):
    assert patterns.matches(path, [pattern]) is match
    assert patterns.matches(path, ["other", pattern]) is match
    assert patterns.matches(path, [])


@pytest.mark.parametrize("pattern", ["", "/data/*.nii.gz", "../*.nii.gz", "a/../b"])
def test_a_pattern_stays_within_its_folder(pattern):
    with pytest.raises(ValueError, match=r"is not a path within the folder .*'\*/ct.nii.gz'"):
        patterns.checked_globs([pattern])


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [(totalsegmentator, "*/ct.nii.gz"), (kits, "*/imaging.nii.gz")],
)
def test_public_layouts(tmp_path, layout, pattern):
    """U13: nothing else is looked at, and the report has no line of it."""
    raw, said = layout(tmp_path / "raw"), []
    plan = prepare(
        PrepareRequest(
            "made",
            tmp_path / "out",
            [raw],
            num_processes=0,
            pattern=[pattern],
            print_fn=said.append,
        )
    )
    assert [Path(case.source).name for case in plan.cases] == [pattern.rpartition("/")[2]] * 2
    assert read_json(tmp_path / "out" / "report.json")["found"] == 2
    assert said == []


def test_the_plan_keeps_the_pattern(tmp_path):
    raw, said = kits(tmp_path / "raw"), []

    def prepared(**options) -> Plan:
        return prepare(
            PrepareRequest(
                "made", tmp_path / "out", [raw], num_processes=0, print_fn=said.append, **options
            )
        )

    plan = prepared(pattern=["*/imaging.nii.gz"])
    kits(raw, [5])
    assert prepared() == plan == Plan.load(tmp_path / "out" / "plan.json")
    more = prepared(update=True)
    assert [Path(case.source).name for case in more.cases] == ["imaging.nii.gz"] * 3
    assert more.fingerprint == plan.fingerprint
    with pytest.raises(
        ValueError,
        match=r"has --pattern \*/imaging.nii.gz, got \*\*/imaging.nii.gz "
        r"\(--update changes it\)",
    ):
        prepared(pattern=["**/imaging.nii.gz"])
    assert prepared(pattern=["**/imaging.nii.gz"], update=True).cases == more.cases
    assert Plan.load(tmp_path / "out" / "plan.json").pattern == ("**/imaging.nii.gz",)


def test_where_nothing_matches_it_says_what_is_there(tmp_path):
    raw = totalsegmentator(tmp_path / "raw")
    with pytest.raises(
        ValueError,
        match=r"nothing in .*raw matches --pattern 'ct.nii.gz'; there are 2 files or DICOM "
        r"folders: s0000/ct.nii.gz, s0001/ct.nii.gz. Write it relative to that folder",
    ):
        find_scans([raw], wanted=["ct.nii.gz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"; it has no scan\. Write it"):
        find_scans([tmp_path / "empty"], wanted=["*"])


def test_slices_match_as_files_and_named_files_are_read_whatever_their_name(tmp_path):
    for name in ("CT", "PET"):
        write_series(tmp_path / "a" / name, ct_array(SHAPE), straight(SHAPE[0]))
    found = find_scans([tmp_path], wanted=["*/CT/*.dcm"])
    assert [Path(scan.path).name for scan in found] == ["CT"]
    write_volume(tmp_path / "a" / "mask.nii.gz", ct_array(SHAPE))
    assert len(find_scans([tmp_path], wanted=["*/mask.nii.gz", "*/CT/*"])) == 2


def test_a_pattern_may_begin_with_a_dot():
    assert patterns.matches("s1/ct.nii.gz", ("./*/ct.nii.gz",))
    assert patterns.checked_globs(["./*/ct.nii.gz", "*/ct.nii.gz"]) == ("*/ct.nii.gz",)
