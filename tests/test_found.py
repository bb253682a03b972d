"""What lies in the folders beside readable scans: pipes, lost links, labels; and errors that may
pass.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from synthetic_scans import ct_array, straight, write_series, write_volume

from nnssl.data import dicom
from nnssl.data import nifti as nifti_module
from nnssl.data import scans as scans_module
from nnssl.data import volumes as volumes_module
from nnssl.data.dicom import series_in
from nnssl.data.refusals import PassingError
from nnssl.data.scans import ALL_SERIES, CLOSED, LABELS, LOST, Found, find_scans, read_scan
from nnssl.data.survey import survey
from nnssl.files import read_json


def test_pipes_and_devices_are_passed_over(tmp_path):
    os.mkfifo(tmp_path / "z.nii.gz")
    os.mkfifo(tmp_path / "z.dcm")
    os.mkfifo(tmp_path / "any")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    signal.alarm(20)  # instead of hanging for ever
    try:
        assert find_scans([tmp_path]) == []
    finally:
        signal.alarm(0)


def test_lost_links_and_closed_folders_are_lines_of_the_report(tmp_path, monkeypatch):
    """T8: they were passed over without a word."""
    raw = tmp_path / "raw"
    write_volume(raw / "a" / "ct.nii.gz", ct_array())
    (raw / "a" / "b.nii.gz").symlink_to(tmp_path / "absent")
    (raw / "a" / "slice1").symlink_to(tmp_path / "absent")
    (raw / "closed").mkdir()
    walk = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", scandir)
    lines = survey(find_scans([raw]), tmp_path / "out", 0)
    assert [(Path(line.path).name, line.series) for line in lines] == [
        ("a", LOST),
        ("ct.nii.gz", ""),
        ("closed", CLOSED),
    ]
    assert lines[0].reason.startswith("links that lead nowhere: 2")
    assert "permission" in lines[2].reason
    assert read_json(tmp_path / "out" / "report.json")["left_out"] == 2


@pytest.mark.parametrize("failure", ["disk", "memory"])
def test_what_may_pass_is_tried_again_by_the_next_run(tmp_path, monkeypatch, failure):
    path = write_volume(tmp_path / "raw" / "a.nii.gz", ct_array())

    def fail(*_):
        if failure == "disk":
            raise OSError(5, "Input/output error", str(path))
        raise RuntimeError("Failed to allocate memory for image.")

    with monkeypatch.context() as patch:
        patch.setattr(
            *(
                (nifti_module.gzip, "open")
                if failure == "disk"
                else (volumes_module, "_information")
            ),
            fail,
        )
        (line,) = survey(find_scans([path.parent]), tmp_path / "out", 0)
        assert (
            "cannot be read now: Input/output error" if failure == "disk" else "memory"
        ) in line.reason
    (line,) = survey(find_scans([path.parent]), tmp_path / "out", 0)
    assert line.kept


def test_a_dicom_folder_with_a_slice_that_cannot_be_opened_is_not_judged(tmp_path, monkeypatch):
    write_series(tmp_path, ct_array(), straight(16))
    opened = Path.open

    def fail(self, *args, **kwargs):
        if self.name == "slice_004.dcm":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(PassingError, match="Permission denied"):
        series_in(tmp_path, cache=tmp_path / "out")


@pytest.fixture
def forbid(monkeypatch):
    """Makes files and folders of these names such that an ordinary user may not look at them."""

    def forbid(*names: str) -> None:
        def guarded(function):
            def guard(path, *args, **kwargs):
                if set(Path(os.fspath(path)).parts) & set(names):
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *args, **kwargs)

            return guard

        for module, name in ((os, "stat"), (Path, "stat"), (Path, "open")):
            monkeypatch.setattr(module, name, guarded(getattr(module, name)))

    return forbid


def names_of(scans: list[Found]) -> list[tuple[str, str]]:
    return [(Path(scan.path).name, scan.series) for scan in scans]


def test_a_slice_without_ending_that_cannot_be_opened_is_not_passed_over(tmp_path, forbid):
    """Its place was filled from the slices next to it, which nobody noticed."""
    raw = write_series(tmp_path / "raw", ct_array(), straight(16))
    for path in list(raw.iterdir()):
        path.rename(path.with_suffix(""))
    assert len(series_in(raw)) == 1
    forbid("slice_004")
    assert names_of(find_scans([raw])) == [("raw", ALL_SERIES)]
    with pytest.raises(PassingError, match=r"Permission denied \(.*slice_004"):
        series_in(raw)
    (line,) = survey(find_scans([raw]), tmp_path / "out", 0)
    assert "Permission denied" in line.reason


def test_files_that_may_not_be_looked_at_are_a_line_of_their_folder(tmp_path, forbid):
    """In a folder without the permission to search it, and behind links into such a one."""
    raw = tmp_path / "raw"
    for name in ("links/ours.nii.gz", "theirs/ct.nii.gz", "listed/a.nii.gz", "notes/b.nii.gz"):
        write_volume(raw / name, ct_array())
    (raw / "links" / "ct.nii.gz").symlink_to(raw / "theirs" / "ct.nii.gz")
    (raw / "listed" / "notes.txt").write_text("no scan")
    (raw / "listed" / "IM0001").write_text("may be a slice")
    forbid("ct.nii.gz", "a.nii.gz", "notes.txt", "IM0001")
    found = names_of(find_scans([raw]))
    assert found == [
        ("links", CLOSED),
        ("ours.nii.gz", ""),
        ("listed", CLOSED),
        ("b.nii.gz", ""),
        ("theirs", CLOSED),
    ]
    lines = survey(find_scans([raw]), tmp_path / "out", 0)
    assert [line.kept for line in lines] == [False, True, False, True, False]
    assert "cannot be looked at: permission denied" in lines[0].reason
    forbid("raw")
    with pytest.raises(FileNotFoundError, match="and that this user may read"):
        find_scans([raw])


def test_labels_are_not_decompressed(tmp_path, monkeypatch):
    named = (
        "a/mask.nii.gz",
        "segmentations/liver.nii.gz",
        "segmentations/spleen.nii.gz",
        "b_seg.nrrd",
    )
    typed = {"c.nii.gz": np.uint8, "d.mha": np.int8, "e.nrrd": np.uint8}
    for name in (*named, *typed):
        write_volume(tmp_path / "raw" / name, (ct_array() > 0).astype(typed.get(name, np.int16)))
    with monkeypatch.context() as patch:
        patch.setattr(scans_module, "check_voxels", lambda path: pytest.fail("decompressed"))
        lines = survey(find_scans([tmp_path / "raw"]), tmp_path / "out", 0)
    labels = {
        Path(line.path).name: int(line.reason.split(": ")[1])
        for line in lines
        if line.series == LABELS
    }
    assert labels == {"raw": 1, "a": 1, "segmentations": 2}
    assert sum("stored as integers that cannot hold" in line.reason for line in lines) == 3
    assert len(lines) == 6
    given = tmp_path / "raw" / "a" / "mask.nii.gz"
    assert find_scans([given]) == [Found(str(given))]


@pytest.mark.parametrize(
    ("name", "is_label"),
    [
        ("P1.seg.nrrd", True),
        ("P1.label.nii.gz", True),
        ("P1.mask.nii.gz", True),
        ("P1.SEG.NRRD", True),
        ("sub-01_space-T1w_dseg.nii.gz", True),
        ("sub-01_label-GM_probseg.nii.gz", True),
        ("P1_seg.2.nii.gz", True),
        ("mask.nii", True),
        ("ct.1.2.nii.gz", False),
        ("1.2.840.113619.mha", False),
        ("seg_ct.nii.gz", False),
        ("P1.segmented.nii.gz", False),
    ],
)
def test_labels_are_known_by_the_last_word_of_the_name(tmp_path, name, is_label):
    (tmp_path / name).touch()
    where = Found(str(tmp_path), LABELS) if is_label else Found(str(tmp_path / name))
    assert find_scans([tmp_path]) == [where]


def test_of_many_series_in_a_folder_each_is_looked_up_alone(tmp_path, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for uid in ("1.2.1", "1.2.2"):
        write_series(raw, ct_array((10, 16, 18)), straight(10), uid=uid, names=uid)
    assert sorted(series_in(raw, out)) == ["1.2.1", "1.2.2"]
    looked = []
    monkeypatch.setattr(dicom, "series_in", lambda *args: looked.append(args) or series_in(*args))
    expected = read_scan(Found(str(raw), "1.2.2"))[0]
    looked.clear()
    os.utime(min(raw.iterdir()), (0, 0))  # of the other series
    np.testing.assert_array_equal(read_scan(Found(str(raw), "1.2.2"), out)[0], expected)
    assert looked == []
    read_scan(Found(str(raw), "1.2.1"), out)
    assert looked == [(raw, out)]
    for path in [*raw.glob("1.2.1*"), *raw.glob("1.2.2_001*")]:
        path.unlink()
    assert len(series_in(raw, out)["1.2.2"].files) == 9
    assert read_scan(Found(str(raw), "1.2.2"), out)[0].shape[0] == 9


def test_a_damaged_cache_of_series_is_made_again(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_series(raw, ct_array((10, 16, 18)), straight(10))
    first = series_in(raw, out)
    (kept,) = (out / "survey").iterdir()
    for content in ("{}", "[]", '{"signature": 1}', "{"):
        kept.write_text(content)
        assert series_in(raw, out) == first
