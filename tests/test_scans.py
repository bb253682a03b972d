"""Finding, reading and refusing raw scans; and the survey, its report, its memory and its
workers.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from synthetic_scans import ct_array, straight, write_series, write_volume

from nnssl.data import survey as survey_module
from nnssl.data.dicom import series_in
from nnssl.data.refusals import UnusableScanError, itk_error
from nnssl.data.scans import ALL_SERIES, LOST, Found, find_scans, read_found, read_scan
from nnssl.data.survey import inspect_scan, nothing_usable, survey
from nnssl.files import NoRoomError


def reason(path: Path, series: str = "") -> str:
    line = inspect_scan(Found(str(path), series))
    assert line.kept == (line.reason == "")
    return line.reason


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_gives_array_and_spacing_in_zyx(tmp_path, ending):
    array = ct_array()
    path = write_volume(tmp_path / f"a{ending}", array, (3.0, 2.0, 1.5))
    assert find_scans([tmp_path]) == [Found(str(path))]
    hu, spacing = read_scan(Found(str(path)))
    np.testing.assert_array_equal(hu, array)
    assert hu.dtype == np.float32
    np.testing.assert_allclose(spacing, (3.0, 2.0, 1.5), rtol=1e-6)
    assert reason(path) == ""


def test_finds_at_any_depth_once_and_passes_over_hidden_files(tmp_path):
    wanted = write_volume(tmp_path / "deep er" / "Jürgen ß" / "scan one.NII.GZ".lower(), ct_array())
    write_volume(tmp_path / ".hidden" / "b.nii.gz", ct_array())
    write_volume(tmp_path / "__MACOSX" / "c.nii.gz", ct_array())
    (tmp_path / "._d.nii.gz").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.nii.gz").symlink_to(tmp_path / "absent.nii.gz")
    (tmp_path / "z_again.nii.gz").symlink_to(wanted)
    found = find_scans([tmp_path, tmp_path / "deep er"])
    assert found[0] == Found(str(tmp_path), LOST)
    assert [Path(one.path).resolve() for one in found[1:]] == [wanted.resolve()]


def test_an_absent_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"absent does not exist; give a folder that holds .*\.nrrd.*DICOM"
    ):
        find_scans([tmp_path / "absent"])


def test_nnunet_dataset_gives_the_ct_channel_of_both_image_folders(tmp_path):
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "imagesTs/b_0000", "labelsTr/a"):
        write_volume(tmp_path / f"{name}.nrrd", ct_array())
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json"):
        find_scans([], [tmp_path])
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nrrd"}))
    assert [Path(scan.path).name for scan in find_scans([], [tmp_path])] == [
        "a_0000.nrrd",
        "b_0000.nrrd",
    ]


def with_nan(hu: np.ndarray, value: float) -> np.ndarray:
    hu = hu.astype(np.float32)
    hu[3, 4, 5] = value
    return hu


def padded(hu: np.ndarray, value: int) -> np.ndarray:
    """What lies outside of the scanner's circle is filled in."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape[1:]), indexing="ij")
    return np.where(y**2 + x**2 > 1.1, value, hu).astype(np.int16)


def smooth(hu: np.ndarray) -> np.ndarray:
    """Resampled linearly, a third of a voxel further in x."""
    return (0.7 * hu[..., 1:] + 0.3 * hu[..., :-1]).astype(np.int16)


NOT_A_CT = {
    "NaN": (lambda hu: with_nan(hu, np.nan), "NaN or infinite"),
    "infinite": (lambda hu: with_nan(hu, np.inf), "NaN or infinite"),
    "minus infinite": (lambda hu: with_nan(hu, -np.inf), "NaN or infinite"),
    "constant": (lambda hu: np.full_like(hu, -1000), "constant: every voxel is -1000"),
    "eight bit": (
        lambda hu: ((hu + 1024) / 4095 * 255).astype(np.uint8),
        "not in HU: stored as integers",
    ),
    "MRI 0 to 1000": (lambda hu: ((hu + 1024) / 4).astype(np.int16), "not in HU: 0 of"),
    "without intercept": (lambda hu: hu + 1024, "not in HU: 0 of"),
    "without intercept, padded": (lambda hu: padded(hu + 1024, -2000), "not in HU: 0 of"),
    "without intercept, padded, resampled": (
        lambda hu: smooth(
            padded(np.pad(hu, ((0, 0), (14, 14), (16, 16)), constant_values=-1000) + 1024, -2000)
        ),
        "bone is not so dense",
    ),
    "intercept twice": (lambda hu: hu - 1024, "not in HU"),
    "narrow window": (lambda hu: hu.clip(-210, 300), "not in HU: 0 of"),
    "noise": (
        lambda hu: np.random.default_rng(0).integers(-900, 500, hu.shape, np.int16),
        "not in HU: 35% of",
    ),
    "unit range": (lambda hu: hu.astype(np.float32) / 1000, "not in HU: 0 of"),
    "z-scored": (lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32), "not in HU"),
    "MRI padded with -1024": (
        lambda hu: np.where(hu < -700, -1024, 800 + hu // 4).astype(np.int16),
        "not in HU: 0 of",
    ),
    "ten times": (lambda hu: hu.astype(np.int32) * 100, "not in HU: values"),
    "only air": (lambda hu: np.minimum(hu, -900), "nothing but air"),
    "two-dimensional": (lambda hu: hu[8], "not three-dimensional"),
    "thin": (lambda hu: hu[:3], "too small"),
}


@pytest.mark.parametrize("name", NOT_A_CT)
def test_what_is_no_ct_is_refused_with_the_reason(tmp_path, name):
    spoil, words = NOT_A_CT[name]
    array = spoil(ct_array())
    path = write_volume(tmp_path / "a.nii.gz", array, (3.0, 2.0, 1.5)[3 - array.ndim :])
    assert words in reason(path)


def test_masked_air_and_metal_and_padding_are_still_ct(tmp_path):
    hu = ct_array().astype(np.int32)
    hu[hu < -700] = -1024
    hu[0, 0, 0], hu[8, 12, 14] = -32768, 30000
    assert reason(write_volume(tmp_path / "a.mha", hu)) == ""
    assert reason(write_volume(tmp_path / "b.mha", padded(ct_array(), -2000))) == ""


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 0.001), (200.0, 1.0, 1.0)])
def test_implausible_spacing_is_refused(tmp_path, spacing):
    assert "implausible spacing" in reason(write_volume(tmp_path / "a.nrrd", ct_array(), spacing))


def test_several_components_and_four_dimensions_are_refused(tmp_path):
    vector = SimpleITK.GetImageFromArray(
        np.repeat(ct_array()[..., None], 3, axis=-1), isVector=True
    )
    SimpleITK.WriteImage(vector, str(tmp_path / "rgb.nrrd"))
    series = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(ct_array(seed=s)) for s in range(2)])
    SimpleITK.WriteImage(series, str(tmp_path / "time.nii.gz"))
    assert "3 components" in reason(tmp_path / "rgb.nrrd")
    assert "not three-dimensional" in reason(tmp_path / "time.nii.gz")


def test_a_full_disk_ends_the_survey_of_dicom_headers(tmp_path, monkeypatch):
    def full(*_, **__):
        raise NoRoomError("the disk is full")

    monkeypatch.setattr(survey_module, "series_in", full)
    with pytest.raises(NoRoomError, match="the disk is full"):
        survey([Found(str(tmp_path), ALL_SERIES)], tmp_path / "out", 0)


@pytest.mark.parametrize("name", ["memory", "allocated"])
def test_a_damaged_file_is_refused_whatever_its_path(name):
    """The message of ITK names the file, which may speak of memory."""
    error = itk_error(RuntimeError(f"Could not create IO object for {name}/a.nrrd"))
    assert isinstance(error, UnusableScanError)
    short = itk_error(RuntimeError(f"{name}/a.nrrd: Failed to allocate memory for image."))
    assert isinstance(short, MemoryError)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_truncated_and_unreadable_files_are_refused(tmp_path, ending):
    path = write_volume(tmp_path / f"a{ending}", ct_array())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert "cannot be read" in reason(path)
    path.write_bytes(b"this is a text")
    assert "cannot be read" in reason(path)
    path.write_bytes(b"")
    assert "cannot be read" in reason(path)


def only_series(folder: Path) -> str:
    series = series_in(folder)
    assert len(series) == 1
    return next(iter(series))


def test_a_dicom_series_is_read_in_order_whatever_the_names(tmp_path):
    array = ct_array((12, 16, 18))
    write_series(tmp_path, array, straight(12, 2.5))
    (tmp_path / "readme.txt").write_text("junk beside the slices")
    (tmp_path / "broken.pdf").write_bytes(bytes(300))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert find_scans([tmp_path]) == [Found(str(tmp_path), ALL_SERIES)]
    uid = only_series(tmp_path)
    hu, spacing = read_scan(Found(str(tmp_path), uid))
    np.testing.assert_array_equal(hu, array)
    np.testing.assert_allclose(spacing, (2.5, 1.5, 1.5))
    theirs = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path), uid)
    assert list(series_in(tmp_path)[uid].files) == [Path(name).name for name in theirs]


def test_a_series_that_runs_from_head_to_feet_is_the_same_scan(tmp_path):
    array = ct_array((12, 16, 18))
    write_series(tmp_path, array[::-1], straight(12)[::-1])
    hu, _ = read_scan(Found(str(tmp_path), only_series(tmp_path)))
    np.testing.assert_array_equal(hu, array)


def test_two_series_of_one_folder_are_two_scans(tmp_path):
    for number in (1, 2):
        write_series(
            tmp_path,
            ct_array((10, 16, 18), number),
            straight(10),
            uid=f"1.2.{number}",
            names=f"s{number}",
        )
    assert sorted(series_in(tmp_path)) == ["1.2.1", "1.2.2"]
    for number in (1, 2):
        hu, _ = read_scan(Found(str(tmp_path), f"1.2.{number}"))
        np.testing.assert_array_equal(hu, ct_array((10, 16, 18), number))


def test_positions_rounded_to_a_tenth_and_a_wrong_tilt_tag_are_no_reason(tmp_path):
    positions = [(0.0, 0.0, round(0.625 * i, 1)) for i in range(20)]
    write_series(
        tmp_path, ct_array((20, 16, 18)), positions, **{"0018_1120": "17.5", "0018_0050": "5"}
    )
    hu, spacing = read_scan(Found(str(tmp_path), only_series(tmp_path)))
    assert hu.shape == (20, 16, 18)
    assert spacing[0] == pytest.approx(0.625, abs=0.005)


def test_too_few_slices(tmp_path):
    write_series(tmp_path, ct_array((8, 16, 18))[:5], straight(5))
    assert "too few slices: 5" in series_in(tmp_path)["1.2.3.4"].reason


def test_a_localizer_inside_the_series_does_not_cost_the_series(tmp_path):
    array = ct_array((10, 16, 18))
    write_series(tmp_path, array, straight(10))
    write_series(
        tmp_path,
        array[:1],
        [(0, 0, 0)],
        (1, 0, 0, 0, 0, -1),
        image_type="ORIGINAL\\PRIMARY\\LOCALIZER",
        names="a",
    )
    series = series_in(tmp_path)
    assert series["1.2.3.4"].reason == ""
    assert len(series["1.2.3.4"].files) == 10
    assert "localizer" in series["1.2.3.4#2"].reason


def test_unreadable_dicom_is_one_line_and_does_not_hurt_the_rest(tmp_path):
    write_series(tmp_path, ct_array((10, 16, 18)), straight(10))
    (tmp_path / "a.dcm").write_bytes(b"junk")
    (tmp_path / "b").write_bytes(bytes(128) + b"DICM" + b"junk" * 9)
    (tmp_path / "a.dcm").rename(tmp_path / os.fsdecode(b"a\xff.dcm"))
    lines = survey(find_scans([tmp_path]), tmp_path.parent / "out", 0)
    assert [line.kept for line in lines] == [True, False]
    assert "2 files cannot be read as DICOM images" in lines[1].reason


def mixed_folder(folder: Path) -> list[Found]:
    for number in range(3):
        write_volume(folder / f"case {number}" / "ct.nii.gz", ct_array(seed=number))
    write_volume(folder / "mri.nii.gz", ct_array() + 1024)
    write_series(folder / "dicom", ct_array((10, 16, 18)), straight(10))
    return find_scans([folder])


def test_the_report_lists_everything_that_was_found(tmp_path):
    scans = mixed_folder(tmp_path / "raw")
    lines = survey(scans, tmp_path / "out", 2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["found"], report["kept"], report["left_out"]) == (5, 4, 1)
    rows = {Path(row["path"]).name + row["series"]: row for row in report["scans"]}
    assert rows["mri.nii.gz"]["reason"].startswith("is not in HU")
    assert rows["dicom1.2.3.4"]["shape"] == [10, 16, 18]
    assert rows["ct.nii.gz"]["spacing"] == [3.0, 2.0, 1.5]
    expected = np.percentile(ct_array(seed=2).astype(np.float32), (0.5, 5, 50, 95, 99.5))
    np.testing.assert_allclose(
        [rows["ct.nii.gz"][f"hu_{p}"] for p in ("0.5", "5", "50", "95", "99.5")],
        expected,
        atol=0.01,
    )
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == [line.path for line in lines]
    assert table[-1]["hu_50"] == ""


def test_the_survey_reads_no_scan_twice_but_a_changed_one_again(tmp_path, monkeypatch):
    scans = mixed_folder(tmp_path / "raw")
    out = tmp_path / "out"
    first = survey(scans, out, 0)
    looked = []
    monkeypatch.setattr(
        survey_module,
        "read_found",
        lambda found, cache: looked.append(found) or read_found(found, cache),
    )
    assert survey(scans, out, 0) == first
    assert looked == []
    changed = write_volume(tmp_path / "raw" / "case 1" / "ct.nii.gz", ct_array((20, 24, 28)))
    again = survey(scans, out, 0)
    assert [found.path for found in looked] == [str(changed)]
    assert [line.shape for line in again if line.path == str(changed)] == [(20, 24, 28)]
    part = tmp_path / "raw" / "dicom" / "slice_003.dcm"
    os.utime(part, ns=(1, 1))
    survey(scans, out, 0)
    assert [found.series for found in looked] == ["", "1.2.3.4"]


def test_odd_names_and_files_that_vanish_do_not_end_the_run(tmp_path):
    raw = tmp_path / "raw"
    odd = write_volume(raw / "a.nii.gz", ct_array()).rename(
        raw / os.fsdecode(b"line\nbreak \xff.nii.gz")
    )
    gone = write_volume(raw / "gone.nii.gz", ct_array())
    scans = find_scans([raw])
    gone.unlink()
    lines = {line.path: line for line in survey(scans, tmp_path / "out", 0)}
    assert "cannot be read: No such file" in lines[str(gone)].reason
    assert "not valid UTF-8" in lines[str(odd)].reason
    assert os.fsencode(odd).replace(b"\n", b"") in (
        tmp_path / "out" / "report.csv"
    ).read_bytes().replace(b"\n", b"")


def test_two_parts_end_with_the_same_survey(tmp_path):
    scans = mixed_folder(tmp_path / "raw")
    whole = survey(scans, tmp_path / "one", 0)
    assert survey(scans, tmp_path / "two", 0, 1, 2) == whole
    assert survey(scans, tmp_path / "two", 0, 0, 2) == whole


def test_nothing_usable_says_what_was_looked_for_and_found(tmp_path):
    error = str(nothing_usable([], [tmp_path]))
    assert str(tmp_path) in error
    assert ".nrrd" in error
    assert "DICOM" in error
    write_volume(tmp_path / "mri.nii.gz", ct_array() + 1024)
    error = str(nothing_usable(survey(find_scans([tmp_path]), tmp_path / "out", 0), [tmp_path]))
    assert "none of the 1 scans" in error
    assert "mri.nii.gz: is not in HU" in error


def test_on_real_dicom_the_axial_series_is_found_and_the_reformat_left_out(shared_data, tmp_path):
    lines = survey(find_scans([shared_data / "ct_dicom"]), tmp_path, 0)
    assert [(line.kept, line.shape) for line in lines] == [(True, (49, 512, 512)), (False, ())]
    np.testing.assert_allclose(lines[0].spacing, (4.0, 1.3671875, 1.3671875))
    assert "reformat" in lines[1].reason


def test_on_real_data_ct_is_kept_and_mri_is_left_out(shared_data):
    ct = sorted((shared_data / "ct_unlabelled").iterdir())[::40]
    mri = [
        sorted((shared_data / name / "imagesTr").iterdir())[0]
        for name in ("Dataset502_HippocampusMRI", "Dataset503_ACDC")
    ]
    assert [reason(path) for path in ct] == [""] * len(ct)
    assert all("not in HU" in reason(path) for path in mri)
